//go:build e2e

package test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

func TestTheDebOnBookworm(t *testing.T) { testDeb(t, "booted-bookworm") }

func TestTheDebOnTrixie(t *testing.T) { testDeb(t, "booted-trixie") }

// testDeb installs, uses, upgrades and removes the package on one machine.
func testDeb(t *testing.T, root string) {
	r := newRelay(t, root)
	defer r.report(t)
	r.live(t, []step{
		{"it installs, and the daemon runs as its own user", (*relay).install},
		{"an administrator's configuration is taken by a restart", (*relay).configure},
		{"Postfix asks over TCP and inside its chroot", (*relay).ask},
		{"root and members of the group look, others do not", (*relay).look},
		{"a chrooted smtp(8) delivers, or not, as the socket says", (*relay).deliver},
		{"a broken configuration fails the reload and changes nothing", (*relay).reload},
		{"a daemon that does not answer is restarted", (*relay).watchdog},
		{"a Postfix that is installed later gets its socket", (*relay).postfixLater},
		{"systemd holds the metrics' socket once it is enabled", (*relay).metrics},
		{"systemd holds the socket of TLS sessions for Postfix alone, also while the daemon restarts", (*relay).sessions},
		{"the first answer comes soon, and the daemon is small", (*relay).figures},
		{"ten restarts lose no lookup", (*relay).restart},
		{"an upgrade loses no lookup, no policy and no configuration", (*relay).upgrade},
		{"removal stops it, and keeps configuration and cache", (*relay).remove},
		{"a new installation restores the removed one", (*relay).reinstall},
		{"purging leaves nothing", (*relay).purge},
	})
}

func (r *relay) install(t *testing.T) {
	r.run(t, "dpkg", "-i", r.bring(t, packageFile(t, older, ".deb")))
	r.wantActive(t)
	for _, unit := range []string{"sts-tlsmap.service", "sts-tlsmap.socket", "sts-tlsmap-postfix.socket", "sts-tlsmap-control.socket"} {
		if state := r.property(t, unit, "UnitFileState"); state != "enabled" {
			t.Errorf("%s is %s", unit, state)
		}
	}
	r.wantOwnUser(t)
	if out := r.run(t, "sts-tlsmap", "-version"); !strings.Contains(out, older) {
		t.Errorf("-version: %s", out)
	}
	for _, page := range []string{"/usr/share/man/man8/sts-tlsmap.8.gz", "/usr/share/man/man5/sts-tlsmap.toml.5.gz"} {
		if !r.has(page) {
			t.Errorf("missing %s", page)
		}
	}
	if out, _ := r.try(t, "journalctl", "--no-pager", "-q", "-u", "sts-tlsmap.service", "-p", "warning"); strings.TrimSpace(out) != "" {
		t.Errorf("systemd or the daemon warns:\n%s", out)
	}
}

// metrics enables the socket that the package does not enable.
func (r *relay) metrics(t *testing.T) {
	const unit = "sts-tlsmap-metrics.socket"
	if state := r.property(t, unit, "UnitFileState"); state != "disabled" {
		t.Errorf("%s is %s", unit, state)
	}
	r.run(t, "systemctl", "enable", unit)
	r.run(t, "systemctl", "restart", "sts-tlsmap")
	// Make and count every kind of attempt.
	r.run(t, "sts-tlsmap", "-forget", honest)
	r.run(t, "sts-tlsmap", "-query", honest)
	r.run(t, "sts-tlsmap", "-refresh", honest)
	client := http.Client{Timeout: time.Minute}
	for path, want := range map[string]string{"/metrics": "sts_tlsmap_build_info", "/": "Policies by mode"} {
		answer, err := client.Get("http://127.0.0.1:9461" + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
		answer.Body.Close()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s, %v, without %q", path, answer.Status, err, want)
		}
		if path == "/metrics" && os.Getenv(upgradeFrom) == "" { // an older program has other metrics
			wantDashboard(t, string(body))
		}
	}
}

// sessions enables the socket of TLS sessions. Its unit makes a folder.
func (r *relay) sessions(t *testing.T) {
	const unit, folder = "sts-tlsmap-tlsrpt.socket", queueDir + "/sts-tlsmap-tlsrpt"
	if state := r.property(t, unit, "UnitFileState"); state != "disabled" {
		t.Errorf("%s is %s", unit, state)
	}
	r.root.Write(t, configFile, config+`
[tlsrpt]
organization = "Company-X"
contact = "tls@relay.test"
sender = "noreply@relay.test"
submit = "sendmail:/usr/sbin/sendmail"
`)
	r.run(t, "systemctl", "enable", unit)
	r.run(t, "systemctl", "restart", "sts-tlsmap")
	if got, want := r.run(t, "stat", "-c", "%U:%G %a", folder, folder+"/tlsrpt.sock"), "root:postfix 710\nroot:postfix 660\n"; got != want {
		t.Errorf("folder and socket are %q, want %q", got, want)
	}
	r.await(t, "-check names what the sandbox forbids", func() bool {
		out, _ := r.try(t, "sts-tlsmap", "-check")
		return strings.Contains(out, "NoNewPrivileges")
	})

	r.run(t, "systemctl", "stop", "sts-tlsmap.service")
	conn, err := net.Dial("unixgram", r.root.Path(folder+"/tlsrpt.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, `{"d":"held.test","policies":[{"policy-type":9,"t":0,"f":0}]}`); err != nil {
		t.Fatal(err)
	}
	r.await(t, "the session before the start is known", func() bool {
		out, _ := r.try(t, "sts-tlsmap", "-report")
		return strings.Contains(out, "held.test")
	})

	if !strings.HasPrefix(r.run(t, "postconf", "-h", "mail_version"), "3.7.") { // which tells nothing
		r.lab.DNS.SetTXT("_smtp._tls."+honest, 300, "v=TLSRPTv1; rua=mailto:tls@"+honest)
		r.run(t, "postconf", "smtp_tls_policy_maps = "+chroot+"-tlsrpt", "smtp_tlsrpt_enable = yes", "smtp_tlsrpt_socket_name = sts-tlsmap-tlsrpt/tlsrpt.sock")
		r.run(t, "systemctl", "restart", "postfix")
		r.run(t, "sh", "-c", "printf 'Subject: a test\\n\\nHello.\\n' | sendmail -f sender@relay.test reported@"+honest)
		r.await(t, "Postfix tells of its session", func() bool {
			out, _ := r.try(t, "sts-tlsmap", "-report", "-json")
			return strings.Contains(out, `"policy-type":"sts"`)
		})
	}
	r.root.Write(t, configFile, config)
	r.run(t, "systemctl", "restart", "sts-tlsmap")
}

// await waits until cond holds.
func (r *relay) await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := stage.Await(ctx, cond); err != nil {
		t.Errorf("it does not happen: %s", what)
	}
}

// wantDashboard checks that the daemon, in its sandbox, has all metrics of the
// dashboard.
func wantDashboard(t *testing.T, scraped string) {
	t.Helper()
	dashboard, err := os.ReadFile("../grafana/sts-tlsmap.json")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\b(?:sts_tlsmap|process|go)_[a-z_]+`).FindAllString(string(dashboard), -1)
	slices.Sort(names)
	if names = slices.Compact(names); len(names) < 30 {
		t.Fatalf("the dashboard shows %q", names)
	}
	for _, name := range names {
		if !regexp.MustCompile(`(?m)^` + name + `[ {]`).MatchString(scraped) {
			t.Errorf("the packaged daemon lacks the dashboard's metric %s", name)
		}
	}
}

func (r *relay) configure(t *testing.T) {
	r.root.Write(t, configFile, config)
	if out, code := r.try(t, "sts-tlsmap", "-check"); code != 1 || !strings.Contains(out, "smtp_tls_policy_maps does not ask the daemon") {
		t.Errorf("-check before Postfix asks: exit %d, %s", code, out)
	}
	r.run(t, "systemctl", "restart", "sts-tlsmap")
}

func (r *relay) ask(t *testing.T) {
	for _, c := range []struct {
		name, dir, table, key, want string
		code                        int
	}{
		{"TCP", "/", inet, honest, secured + "\n", 0},
		{"TCP", "/", inet, plain, "", 1},
		{"the chroot's socket", queueDir, chroot, honest, secured + "\n", 0},
		{"the chroot's socket", queueDir, chroot, plain, "", 1},
	} {
		out, code := r.try(t, "sh", "-c", "cd "+c.dir+" && exec postmap -q "+c.key+" "+c.table)
		if out != c.want || code != c.code {
			t.Errorf("%s, %s: exit %d, %q; want %d, %q", c.name, c.key, code, out, c.code, c.want)
		}
	}
	if out := r.run(t, "sts-tlsmap", "-query", honest); out != secured+"\n" {
		t.Errorf("-query: %q", out)
	}
}

func (r *relay) look(t *testing.T) {
	if out := r.run(t, "sts-tlsmap", "-cache"); !strings.Contains(out, honest) {
		t.Errorf("-cache as root: %s", out)
	}
	r.run(t, "useradd", "--system", "--no-create-home", "--groups", "sts-tlsmap", "member")
	r.run(t, "useradd", "--system", "--no-create-home", "stranger")
	if out := r.run(t, "runuser", "-u", "member", "--", "sts-tlsmap", "-cache", honest); !strings.Contains(out, honest) {
		t.Errorf("-cache as a member of the group: %s", out)
	}
	if out, code := r.try(t, "runuser", "-u", "member", "--", "sts-tlsmap", "-forget", honest); code != 2 {
		t.Errorf("-forget as a member of the group: exit %d, %s", code, out)
	}
	if out, code := r.try(t, "runuser", "-u", "stranger", "--", "sts-tlsmap", "-cache"); code != 2 {
		t.Errorf("-cache as a stranger: exit %d, %s", code, out)
	}
	r.run(t, "userdel", "member")
	r.run(t, "userdel", "stranger")
}

func (r *relay) deliver(t *testing.T) {
	if service := r.run(t, "postconf", "-M", "smtp/unix"); strings.Fields(service)[4] != "y" {
		t.Fatalf("smtp(8) is not chrooted: %s", service)
	}
	r.root.Write(t, queueDir+"/etc/resolv.conf", "nameserver "+stage.Resolver+"\n")
	r.run(t, "postconf", "smtp_tls_policy_maps = "+chroot, "smtp_tls_CAfile = "+labCA, "smtp_tls_security_level = may",
		"smtp_tls_loglevel = 1", "maillog_file = /var/log/postfix.log", "inet_protocols = ipv4", "mydestination =",
		"master_service_disable = inet", "myhostname = relay.test")
	r.run(t, "systemctl", "restart", "postfix")
	for _, domain := range []string{honest, forged} {
		r.run(t, "sh", "-c", "printf 'Subject: a test\\n\\nHello.\\n' | sendmail -f sender@relay.test someone@"+domain)
	}
	log := r.awaitMail(t, "to=<someone@"+honest+">", "to=<someone@"+forged+">")
	for _, want := range []string{
		"Verified TLS connection established to mx1." + honest,
		"to=<someone@" + honest + ">, relay=mx1." + honest,
		"status=sent",
		"status=deferred (Server certificate not", // "trusted" or "verified" follows
	} {
		if !strings.Contains(log, want) {
			t.Errorf("Postfix's log has no %q:\n%s", want, log)
		}
	}
	if out, code := r.try(t, "sts-tlsmap", "-check"); code != 0 || !strings.Contains(out, "asks "+chroot) {
		t.Errorf("-check once Postfix asks: exit %d, %s", code, out)
	}
}

// awaitMail waits until Postfix's log has all of want, and returns the log.
func (r *relay) awaitMail(t *testing.T, want ...string) (log string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err := stage.Await(ctx, func() bool {
		text, _ := os.ReadFile(r.root.Path("/var/log/postfix.log"))
		log = string(text)
		return !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(log, w) })
	})
	if err != nil {
		t.Fatalf("Postfix's log does not contain all of %q:\n%s", want, log)
	}
	return log
}

func (r *relay) reload(t *testing.T) {
	r.root.Write(t, configFile, config+"\n[exempt]\ndomains = [\""+honest+"\"]\nnonsense = 1\n")
	if out, code := r.try(t, "systemctl", "reload", "sts-tlsmap"); code == 0 {
		t.Errorf("the reload of a broken file succeeded: %s", out)
	}
	if out := r.run(t, "postmap", "-q", honest, inet); out != secured+"\n" {
		t.Errorf("the lookup afterwards: %q", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := stage.Await(ctx, func() bool {
		return strings.Contains(r.run(t, "journalctl", "--no-pager", "-u", "sts-tlsmap.service"), configFile+":8")
	}); err != nil {
		t.Error("the journal does not name the line of the mistake")
	}
	// A restart does not loop, and Postfix is told.
	r.run(t, "systemctl", "restart", "sts-tlsmap")
	if out, code := r.try(t, "postmap", "-q", honest, inet); code == 0 || !strings.Contains(out, configFile+":8: ") {
		t.Errorf("the lookup after a restart: exit %d, %s", code, out)
	}
	if status := r.property(t, "sts-tlsmap.service", "StatusText"); !strings.Contains(status, "cannot start yet, every lookup is answered TEMP: "+configFile+":8: ") {
		t.Errorf("systemctl status says %q", status)
	}
	r.root.Write(t, configFile, config+"\n[exempt]\ndomains = [\""+honest+"\"]\n")
	r.run(t, "systemctl", "reload", "sts-tlsmap")
	if err := stage.Await(ctx, func() bool { _, code := r.try(t, "sts-tlsmap", "-query", honest); return code == 1 }); err != nil {
		t.Error("an exemption has no effect after a reload")
	}
	r.root.Write(t, configFile, config)
	r.run(t, "systemctl", "reload", "sts-tlsmap")
	if err := stage.Await(ctx, func() bool { _, code := r.try(t, "sts-tlsmap", "-query", honest); return code == 0 }); err != nil {
		t.Error("a removed exemption still has effect after a reload")
	}
}

// watchdog stops the daemon's process and waits for systemd to replace it.
func (r *relay) watchdog(t *testing.T) {
	r.root.Write(t, "/etc/systemd/system/sts-tlsmap.service.d/watchdog.conf", "[Service]\nWatchdogSec=6s\n")
	r.run(t, "systemctl", "daemon-reload")
	r.run(t, "systemctl", "restart", "sts-tlsmap")
	r.run(t, "systemctl", "kill", "--signal=STOP", "sts-tlsmap.service")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := stage.Await(ctx, func() bool {
		return r.property(t, "sts-tlsmap.service", "NRestarts") != "0" && r.property(t, "sts-tlsmap.service", "ActiveState") == "active"
	}); err != nil {
		t.Error("systemd did not restart the daemon")
	}
	if out := r.run(t, "sts-tlsmap", "-query", honest); out != secured+"\n" {
		t.Errorf("the lookup afterwards: %q", out)
	}
	r.run(t, "rm", "-r", "/etc/systemd/system/sts-tlsmap.service.d")
	r.run(t, "systemctl", "daemon-reload")
	r.run(t, "systemctl", "restart", "sts-tlsmap")
}

// postfixLater makes dpkg believe that Postfix was unpacked while the socket in
// its chroot is missing: either its unit was never started, or a purged Postfix
// removed its directory under the active unit.
func (r *relay) postfixLater(t *testing.T) {
	for _, c := range []struct {
		what  string
		state string // of the unit
		do    []string
	}{
		{"a new Postfix", "inactive", []string{"systemctl", "stop", "sts-tlsmap-postfix.socket"}},
		{"a Postfix purged and installed again", "active", []string{"rm", "-rf", queueDir + "/sts-tlsmap"}},
	} {
		r.run(t, c.do[0], c.do[1:]...)
		if state := r.property(t, "sts-tlsmap-postfix.socket", "ActiveState"); r.has(socket) || state != c.state {
			t.Fatalf("%s: the unit is %s, %s is there: %v", c.what, state, socket, r.has(socket))
		}
		r.run(t, "dpkg-trigger", "--by-package=postfix", "--no-await", "/usr/sbin/postfix")
		r.run(t, "dpkg", "--configure", "--pending")
		if out := r.run(t, "sh", "-c", "cd "+queueDir+" && exec postmap -q "+honest+" "+chroot); out != secured+"\n" {
			t.Errorf("%s: through the chroot's socket: %q", c.what, out)
		}
		if state := r.property(t, "sts-tlsmap.service", "ActiveState"); state != "active" {
			t.Errorf("%s: the service is %s", c.what, state)
		}
	}
}

// figures logs measurements. Its limits are generous.
func (r *relay) figures(t *testing.T) {
	r.run(t, "systemctl", "stop", "sts-tlsmap.service")
	began := time.Now()
	c := &keptConnection{endpoint: r.overTCP()}
	got, err := c.ask(honest)
	took := time.Since(began)
	c.close()
	if err != nil || got != "OK "+secured {
		t.Fatalf("the lookup that starts the daemon: %q, %v", got, err)
	}
	r.measure("time to first answer, start by socket", "%v", took.Round(time.Millisecond))
	r.measure("resident memory at rest", "%s, of it anonymous %s", r.daemonStatus(t, "VmRSS"), r.daemonStatus(t, "RssAnon"))
	out := r.run(t, "systemd-analyze", "security", "--offline=yes", "--no-pager", "/usr/lib/systemd/system/sts-tlsmap.service")
	score := regexp.MustCompile(`exposure level for \S+: (\S+)`).FindStringSubmatch(out)
	if score == nil {
		t.Fatalf("systemd-analyze security: %s", out)
	}
	r.measure("systemd-analyze security", "%s", score[1])
	for _, suffix := range []string{".deb", ".rpm"} {
		st, err := os.Stat(packageFile(t, newer, suffix))
		if err != nil {
			t.Fatal(err)
		}
		r.measure("size of the "+suffix, "%.2f MiB", float64(st.Size())/(1<<20))
	}
	var kib int
	if _, err := fmt.Sscan(r.daemonStatus(t, "VmRSS"), &kib); err != nil || kib > 64<<10 {
		t.Errorf("resident memory: %d KiB (%v)", kib, err)
	}
}

func (r *relay) restart(t *testing.T) {
	r.underLoad(t, fmt.Sprintf("%d restarts", restarts), func(l *load) {
		for range restarts {
			r.run(t, "systemctl", "restart", "sts-tlsmap")
			l.await(t, lookupsBetween)
		}
	})
}

func (r *relay) upgrade(t *testing.T) {
	policies := r.run(t, "sts-tlsmap", "-cache", "-json")
	r.lab.DNS.Forget()
	started := r.property(t, "sts-tlsmap.socket", "ActiveEnterTimestampMonotonic")
	r.underLoad(t, "an upgrade", func(*load) {
		r.run(t, "dpkg", "--force-confold", "-i", r.bring(t, packageFile(t, newer, ".deb")))
	})
	if again := r.property(t, "sts-tlsmap.socket", "ActiveEnterTimestampMonotonic"); again != started {
		t.Error("the upgrade restarted the socket")
	}
	r.wantUpgraded(t)
	for _, domain := range []string{honest, forged} {
		if !strings.Contains(policies, domain) || !strings.Contains(r.run(t, "sts-tlsmap", "-cache"), domain) {
			t.Errorf("the policy of %s was not kept", domain)
		}
		if n := r.lab.DNS.Asked("mta-sts."+domain, "A"); n != 0 {
			t.Errorf("the policy of %s was fetched %d times", domain, n)
		}
	}
	r.wantOwnUser(t)
}

func (r *relay) remove(t *testing.T) {
	wantWarning(t, r.run(t, "dpkg", "--remove", "sts-tlsmap"))
	r.wantRemoved(t, []string{socket}, []string{configFile, cacheFile})
}

func (r *relay) reinstall(t *testing.T) {
	r.run(t, "dpkg", "-i", r.bring(t, packageFile(t, newer, ".deb")))
	if out := r.run(t, "sts-tlsmap", "-query", honest); out != secured+"\n" {
		t.Errorf("-query: %q", out)
	}
	if n := r.lab.DNS.Asked("mta-sts."+honest, "A"); n != 0 {
		t.Errorf("the policy was fetched %d times", n)
	}
}

func (r *relay) purge(t *testing.T) {
	r.run(t, "dpkg", "--purge", "sts-tlsmap")
	r.wantNothingLeft(t, func(string) bool { return false })
	if out, _ := r.try(t, "systemctl", "list-units", "--all", "--no-legend", "sts-tlsmap*"); strings.TrimSpace(out) != "" {
		t.Errorf("units: %s", out)
	}
}
