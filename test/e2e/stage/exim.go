package stage

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"testing"
)

// Where things are inside the root.
const (
	eximPath   = "/usr/sbin/exim4"
	eximLog    = "/var/log/exim4/mainlog"
	eximPanics = "/var/log/exim4/paniclog"
	eximDir    = "/etc/exim4/"
	shippedDir = "/usr/share/sts-tlsmap/exim/" // where the package puts packaging/exim
)

// An Exim is Debian's, with Debian's configuration or one of the test's own.
// It runs for each message and queue run, and not as a daemon: nothing goes on
// that the test has not asked for.
type Exim struct {
	Version string // "4.98.2"

	root Root
	sent int
	tag  string // in the recipients' names, so that no two Exims have the same
}

// EximOptions are what an Exim is set up with.
type EximOptions struct {
	Files map[string]string // path in the root -> text
	// Shipped is packaging/exim, as a test may have changed it.
	Shipped fs.FS
	// Debian are the lines of update-exim4.conf.conf that differ from those
	// for a machine on the internet: "dc_relay_domains" -> "backup.test".
	Debian map[string]string
	// Single is a whole configuration that takes the place of Debian's.
	Single string
}

// debianDefaults are the lines of update-exim4.conf.conf of a machine on the
// internet, with split configuration files and no local mail.
var debianDefaults = map[string]string{
	"dc_eximconfig_configtype": "internet", "dc_other_hostnames": "", "dc_local_interfaces": "127.0.0.1", "dc_readhost": "",
	"dc_relay_domains": "", "dc_minimaldns": "false", "dc_relay_nets": "", "dc_smarthost": "", "CFILEMODE": "644",
	"dc_use_split_config": "true", "dc_hide_mailname": "", "dc_mailname_in_oh": "true", "dc_localdelivery": "mail_spool",
}

// StartExim sets up the Exim in the root that setup calls name.
func StartExim(t *testing.T, name string, o EximOptions) *Exim {
	t.Helper()
	e, err := TryExim(t, name, o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TryExim is StartExim, and returns an error if Exim does not take its
// configuration.
func TryExim(t *testing.T, name string, o EximOptions) (*Exim, error) {
	t.Helper()
	e := &Exim{root: mountRoot(t, name)}
	e.tag = path.Base(path.Dir(string(e.root)))
	for path, text := range map[string]string{
		"/etc/resolv.conf": resolvConf,
		"/etc/hosts":       "127.0.0.1 localhost\n",
		"/etc/mailname":    "relay.test\n",
	} {
		e.root.Write(t, path, text)
	}
	e.ship(t, o.Shipped, o.Single == "")
	for path, text := range o.Files {
		e.root.Write(t, path, text)
	}
	if o.Single != "" {
		e.root.Write(t, eximDir+"exim4.conf", o.Single)
	} else if err := e.configureDebian(t, o.Debian); err != nil {
		return nil, err
	}
	out, err := e.root.command(eximPath, "-bV").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("exim -bV: %w\n%s", err, out)
	}
	version := regexp.MustCompile(`(?m)^Exim version (\S+)`).FindSubmatch(out)
	if version == nil {
		t.Fatalf("exim -bV tells no version: %s", out)
	}
	e.Version = string(version[1])
	t.Cleanup(func() { e.end(t) })
	return e, nil
}

// ship puts the shipped files where the package does, and with split those for
// Debian's split configuration beside Debian's.
func (e *Exim) ship(t *testing.T, shipped fs.FS, split bool) {
	t.Helper()
	err := fs.WalkDir(shipped, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(shipped, name)
		if err != nil {
			return err
		}
		e.root.Write(t, path.Join(shippedDir, name), string(text))
		if split && strings.HasPrefix(name, "conf.d/") {
			e.root.Write(t, eximDir+name, string(text))
		}
		return nil
	})
	if err != nil {
		t.Fatalf("reading packaging/exim: %v", err)
	}
}

// configureDebian has Debian put its configuration together, and returns an
// error if Exim does not take it.
func (e *Exim) configureDebian(t *testing.T, settings map[string]string) error {
	t.Helper()
	var b strings.Builder
	for name, value := range debianDefaults {
		if set, ok := settings[name]; ok {
			value = set
		}
		fmt.Fprintf(&b, "%s='%s'\n", name, value)
	}
	e.root.Write(t, eximDir+"update-exim4.conf.conf", b.String())
	if out, err := e.root.command("/usr/sbin/update-exim4.conf").CombinedOutput(); err != nil {
		return fmt.Errorf("update-exim4.conf: %w\n%s", err, out)
	}
	return nil
}

// end shows what Exim logged if the test failed.
func (e *Exim) end(t *testing.T) {
	if !t.Failed() {
		return
	}
	t.Logf("Exim's log:\n%s", strings.Join(e.Log(t), "\n"))
	if panics, err := os.ReadFile(e.root.Path(eximPanics)); err == nil && len(panics) > 0 {
		t.Logf("Exim's panic log:\n%s", panics)
	}
}

func (e *Exim) must(t *testing.T, c *exec.Cmd) string {
	t.Helper()
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(c.Args, " "), err, out)
	}
	return string(out)
}

// Run runs Exim as root and returns what it printed.
func (e *Exim) Run(t *testing.T, args ...string) string {
	t.Helper()
	return e.must(t, e.root.command(eximPath, args...))
}

// Talk has an Exim take an SMTP session from standard input, as it were from
// another host, and returns what it answered.
func (e *Exim) Talk(t *testing.T, options []string, lines ...string) string {
	t.Helper()
	c := e.root.command(eximPath, append(options, "-bs", "-oMa", "192.0.2.9")...)
	c.Stdin = strings.NewReader(strings.Join(lines, "\r\n") + "\r\n")
	return e.must(t, c)
}

// Expand has Exim expand lines of standard input, and returns what it printed.
func (e *Exim) Expand(t *testing.T, lines string) string {
	t.Helper()
	c := e.root.command(eximPath, "-be")
	c.Stdin = strings.NewReader(lines)
	return e.must(t, c)
}

// Program runs the program under test on the machine that has the Exim, with
// one of its modes and no configuration, and returns what it printed.
func (e *Exim) Program(t *testing.T, args ...string) string {
	t.Helper()
	return e.must(t, e.root.program(t, args...))
}

// Read returns a file of the machine that has the Exim.
func (e *Exim) Read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(e.root.Path(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Shell runs a script there, and returns what it printed.
func (e *Exim) Shell(t *testing.T, script string, args ...string) string {
	t.Helper()
	c := e.root.command("/bin/sh", append([]string{"-s"}, args...)...)
	c.Stdin = strings.NewReader(script)
	return e.must(t, c)
}

// Name is "Exim" and the version.
func (e *Exim) Name() string { return "Exim " + e.Version }

// KeepsNoVerified reports whether this Exim by itself keeps no connection that
// it has sent a server name on: 4.100 loses that name on the way to the next
// message, takes it for another one, and hangs up.
func (e *Exim) KeepsNoVerified() bool { return strings.HasPrefix(e.Version, "4.100") }

// Send submits a message to somebody at the domain, and returns when it was
// tried.
func (e *Exim) Send(t *testing.T, domain string) *Message {
	t.Helper()
	return e.Submit(t, []string{domain}, "-odf")[0]
}

// Queue submits a message to somebody at the domain, which is tried by the
// next queue run.
func (e *Exim) Queue(t *testing.T, domain string) *Message {
	t.Helper()
	return e.Submit(t, []string{domain}, "-odq")[0]
}

// Submit submits one message to somebody at each of the domains. Of Exim's
// options, one says when it is tried: -odf is before Submit returns.
func (e *Exim) Submit(t *testing.T, domains []string, options ...string) []*Message {
	t.Helper()
	var messages []*Message
	args := append(options, "-f", "sender@relay.test")
	for _, domain := range domains {
		e.sent++
		local := fmt.Sprintf("message%d.%s@", e.sent, e.tag)
		messages = append(messages, &Message{Recipient: local + strings.ToLower(domain), MTA: e})
		args = append(args, local+domain)
	}
	c := e.root.command(eximPath, args...)
	c.Stdin = strings.NewReader("Subject: test\n\nHello.\n")
	e.must(t, c)
	return messages
}

// retry has a message tried again, whatever its retry time. The outcome of the
// last try is logged before its process lets go of the message: while that
// holds it, Exim passes the message over, and has to be asked again.
func (e *Exim) retry(t *testing.T, id string) {
	t.Helper()
	locked := func() int {
		return strings.Count(strings.Join(e.Log(t), "\n"), id+" Spool file for "+id+" is locked")
	}
	ctx, cancel := context.WithTimeout(t.Context(), deliveryTime)
	defer cancel()
	err := Await(ctx, func() bool {
		before := locked()
		e.Run(t, "-M", id)
		return locked() == before
	})
	if err != nil {
		t.Fatalf("message %s stays locked by another process", id)
	}
}

// outcomes finds the tries to deliver to the recipient.
func (e *Exim) outcomes(t *testing.T, recipient string) []Outcome {
	t.Helper()
	return eximOutcomes(e.Log(t), recipient)
}

// Log returns the lines of Exim's main log so far.
func (e *Exim) Log(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(e.root.Path(eximLog))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	return lines[:len(lines)-1]
}

var (
	// Of a message: its id, and the rest.
	eximLine = regexp.MustCompile(`^\S+ \S+ (?:\[\d+\] )?(\w{6,}-\w{6,}-\w+) (.*)$`)
	// Of a try: its sign, the recipient, and the rest.
	eximTry   = regexp.MustCompile(`^(=>|->|==|\*\*) (\S+?):? (.*)$`) // an IPv6 literal has colons
	eximHost  = regexp.MustCompile(` H=(\S+) (\[[^\]]+\])(\*?)`)
	eximCheck = regexp.MustCompile(` CV=(\w+)`)
)

var eximStatus = map[string]string{"=>": "sent", "->": "sent", "==": "deferred", "**": "bounced"}

// eximTLS is how a certificate was seen, by what CV= says, in Postfix's words.
var eximTLS = map[string]string{"yes": "Verified", "dane": "Verified", "no": "Untrusted"}

// eximOutcomes finds in the log the tries to deliver to the recipient. What
// was logged about its message since the last one belongs to a try.
func eximOutcomes(log []string, recipient string) []Outcome {
	id := ""
	for _, line := range log {
		m := eximLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if try := eximTry.FindStringSubmatch(m[2]); try != nil && try[2] == recipient {
			id = m[1]
			break
		}
	}
	var found []Outcome
	since := ""
	for _, line := range log {
		m := eximLine.FindStringSubmatch(line)
		if m == nil || m[1] != id {
			continue
		}
		since += m[2] + "\n"
		try := eximTry.FindStringSubmatch(m[2])
		if try == nil || try[2] != recipient {
			continue
		}
		o := Outcome{QueueID: id, Status: eximStatus[try[1]], Reason: try[3], Relay: "none", Log: since}
		if check := eximCheck.FindStringSubmatch(try[3]); check != nil {
			o.TLS = eximTLS[check[1]]
		}
		if host := eximHost.FindStringSubmatch(try[3]); host != nil {
			o.Relay = host[1] + host[2]
			if o.TLS != "" && host[3] != "" {
				o.TLS = "Kept" // this process has not made the connection, and knows nothing of the certificate
			}
		}
		found, since = append(found, o), ""
	}
	return found
}

// AddAddress gives this machine an address, which Exim knows for its own.
func AddAddress(t *testing.T, address string) {
	t.Helper()
	if out, err := exec.Command("ip", "addr", "replace", address, "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("ip addr replace %s: %v: %s", address, err, out)
	}
}

// AddNetwork has every address of a network be one of this machine, without
// giving it to an interface: Exim takes no mail to hosts at 127.0.0.0/8, nor to
// those at an interface's own address.
func AddNetwork(t *testing.T, cidr string) {
	t.Helper()
	out, err := exec.Command("ip", "route", "add", "local", cidr, "dev", "lo").CombinedOutput()
	if err != nil {
		t.Fatalf("ip route add local %s: %v: %s", cidr, err, out)
	}
	// With IPv6, a route is not enough for a server to listen.
	if err := os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
}
