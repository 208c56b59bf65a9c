//go:build e2e

package delivery

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

const (
	reporter = "reporter.test" // the domain that reports
	sender   = "noreply@" + reporter
	contact  = "tls-reports@" + reporter
	selector = "tls2026"
	target   = "target.test" // the domain that is reported

	labNet   = "198.18.0.0/16" // the lab's hosts
	hostNet  = "198.18.0.0/15" // and others; Exim does not deliver to 127.0.0.0/8
	day      = 24 * time.Hour
	patience = time.Minute     // for what is in motion
	hurry    = 3 * time.Second // for what a start sets in motion
)

// A world has a daemon with its clock, in a small internet.
type world struct {
	lab      *testlab.T
	daemon   *stage.Daemon
	clock    testlab.Clock
	sessions string // path of the socket, outside the daemon's root
}

// newLab starts a lab in which reporter publishes a DKIM key.
func newLab(t *testing.T) *testlab.T {
	t.Helper()
	stage.AddNetwork(t, hostNet)
	// As systemd sets it. With the kernel's 10, postfix stop can wait forever to log.
	if err := os.WriteFile("/proc/sys/net/unix/max_dgram_qlen", []byte("512"), 0); err != nil {
		t.Fatal(err)
	}
	lab := testlab.NewWith(t, testlab.Options{DNS: stage.Resolver + ":53", Net: netip.MustParsePrefix(labNet), PolicyPort: 443, MailPort: 25})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stage.Path("dkim.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600); err != nil {
		t.Fatal(err)
	}
	lab.DNS.SetTXT(selector+"._domainkey."+reporter, 300, "v=DKIM1; k=rsa; p="+base64.StdEncoding.EncodeToString(public))
	return lab
}

// asks has a domain ask for reports.
func asks(lab *testlab.T, domain, rua string) {
	lab.DNS.SetTXT("_smtp._tls."+domain, 300, "v=TLSRPTv1; rua="+rua)
}

// newWorld makes a daemon on the machine root; "" is the stage itself. Its clock is
// ahead of the right time. It does not start yet. Settings are lines of [tlsrpt].
func newWorld(t *testing.T, lab *testlab.T, root stage.Root, ahead time.Duration, settings ...string) *world {
	t.Helper()
	w := &world{lab: lab, clock: testlab.Clock(stage.Path("clock")), sessions: root.Path(postfixSocket)}
	if _, err := os.Stat(filepath.Dir(filepath.Dir(w.sessions))); root == "" || err != nil { // no Postfix
		w.sessions = stage.Path("tlsrpt/tlsrpt.sock")
	}
	w.daemon = stage.NewDaemon(t, testlab.DaemonConfig{CA: stage.WriteCA(t, lab), Tables: strings.Join(append([]string{
		"[tlsrpt]",
		`organization = "Company-X"`,
		`contact = "` + contact + `"`,
		`sender = "` + sender + `"`,
		`path = "` + stage.Path("reports.db") + `"`,
		`window = "1m"`,
		`dkim_key = "` + stage.Path("dkim.pem") + `"`,
		`dkim_selector = "` + selector + `"`,
		`postfix_socket = "unix:` + strings.TrimPrefix(w.sessions, string(root)) + `"`,
	}, settings...), "\n")})
	w.daemon.Env = append(testlab.WithoutProxies(os.Environ()), w.clock.Env())
	if root != "" {
		w.daemon.In(t, root)
	}
	w.set(t, ahead)
	return w
}

// on returns how far ahead of the right time a clock is that says one in the morning of
// today or of a day before. A signature made by that clock is not of the far future.
func on(daysAgo int) time.Duration {
	return time.Until(today.Add(time.Hour)) - time.Duration(daysAgo)*day
}

var today = time.Now().UTC().Truncate(day)

// dayOf is the day of such a clock.
func dayOf(ahead time.Duration) tlsrpt.Day { return tlsrpt.DayOf(time.Now().Add(ahead)) }

// set sets the clock.
func (w *world) set(t *testing.T, ahead time.Duration) {
	t.Helper()
	if err := w.clock.Set(ahead); err != nil {
		t.Fatal(err)
	}
}

// feed reports one session with a domain as Postfix does: good, or with an expired
// certificate. It is in the log when feed returns.
func (w *world) feed(t *testing.T, domain string, good bool) {
	t.Helper()
	var conn net.Conn
	w.await(t, func() bool {
		var err error
		conn, err = net.Dial("unixgram", w.sessions)
		return err == nil
	})
	defer conn.Close()
	outcome := `"t":0,"f":0`
	if !good {
		outcome = `"failure-details":[{"c":204,"s":"192.0.2.1","n":"mx.` + domain + `","h":"250-mx.` + domain + `\r\n250 STARTTLS","r":"192.0.2.2"}],"t":1,"f":1`
	}
	before := w.count(t, domain)
	if _, err := fmt.Fprintf(conn, `{"dpv":"1","d":"%s","pr":"v=TLSRPTv1;","policies":[{"policy-type":9,"policy-domain":"%s",%s}]}`, domain, domain, outcome); err != nil {
		t.Fatal(err)
	}
	w.await(t, func() bool { return w.count(t, domain) > before })
}

// count returns the sessions that are known of a domain.
func (w *world) count(t *testing.T, domain string) (n uint64) {
	t.Helper()
	for _, v := range w.views(t) {
		if v.Domain == domain {
			for _, p := range v.Policies {
				n += p.Summary.Successful + p.Summary.Failed
			}
		}
	}
	return n
}

// views returns what -report prints.
func (w *world) views(t *testing.T) (views []reporting.View) {
	t.Helper()
	out, code := w.daemon.Run(t, "-report", "-json")
	if code > 1 {
		t.Fatalf("-report: exit %d: %s", code, out)
	}
	for line := range strings.Lines(out) {
		var v reporting.View
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("-report -json prints %q: %v", line, err)
		}
		views = append(views, v)
	}
	return views
}

// states returns the state of each report that goes to a destination, with the reason.
func (w *world) states(t *testing.T) map[string]string {
	t.Helper()
	states := make(map[string]string)
	for _, v := range w.views(t) {
		for _, d := range v.Deliveries {
			states[fmt.Sprintf("%s %s %s", v.Day, v.Domain, d.To)] = strings.TrimSpace(fmt.Sprint(d.State) + " " + d.Reason)
		}
	}
	return states
}

// deliveries returns the reports of a domain's days.
func (w *world) deliveries(t *testing.T, domain string) (all []reporting.Delivery) {
	t.Helper()
	for _, v := range w.views(t) {
		if v.Domain == domain {
			all = append(all, v.Deliveries...)
		}
	}
	return all
}

// accepted reports whether n reports about a domain were accepted, and none is open.
func (w *world) accepted(t *testing.T, domain string, n int) bool {
	t.Helper()
	all := w.deliveries(t, domain)
	return len(all) == n && !slices.ContainsFunc(all, func(d reporting.Delivery) bool { return d.State != tlsrpt.Accepted })
}

// edit changes the daemon's configuration, for its next start.
func (w *world) edit(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(w.daemon.Config)
	if err == nil && strings.Count(string(text), from) != 1 {
		err = fmt.Errorf("%q is not there once", from)
	}
	if err == nil {
		err = os.WriteFile(w.daemon.Config, []byte(strings.Replace(string(text), from, to, 1)), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) await(t *testing.T, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := stage.Await(ctx, cond); err != nil {
		t.Fatalf("it does not happen; -report: %v", w.states(t))
	}
}

// night moves the clock to a later day, when all reports that are due go out once.
func (w *world) night(t *testing.T, ahead time.Duration) {
	t.Helper()
	w.restart(t, ahead, func() bool {
		return w.every(t, ahead, func(d []reporting.Delivery) bool { return len(d) > 0 })
	})
	w.restart(t, ahead+5*time.Minute, func() bool {
		return w.every(t, ahead, func(d []reporting.Delivery) bool {
			return !slices.ContainsFunc(d, func(d reporting.Delivery) bool { return d.State.Open() && d.Reason == "" })
		})
	})
}

// every reports whether cond holds for the reports of each domain and past day.
func (w *world) every(t *testing.T, ahead time.Duration, cond func([]reporting.Delivery) bool) bool {
	t.Helper()
	return !slices.ContainsFunc(w.views(t), func(v reporting.View) bool { return v.Day < dayOf(ahead) && !cond(v.Deliveries) })
}

// restart starts the daemon anew, with its clock at a time, until cond holds: the daemon
// looks at what is due when it starts, and then once a minute.
func (w *world) restart(t *testing.T, ahead time.Duration, cond func() bool) {
	t.Helper()
	for range 6 {
		w.daemon.Stop(t)
		w.set(t, ahead)
		w.daemon.Start(t)
		ctx, cancel := context.WithTimeout(t.Context(), hurry)
		err := stage.Await(ctx, cond)
		cancel()
		if err == nil {
			return
		}
	}
	t.Fatalf("it does not happen; -report: %v", w.states(t))
}
