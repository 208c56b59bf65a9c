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

// Paths inside the root.
const (
	eximPath   = "/usr/sbin/exim4"
	eximLog    = "/var/log/exim4/mainlog"
	eximPanics = "/var/log/exim4/paniclog"
	eximDir    = "/etc/exim4/"
	shippedDir = "/usr/share/sts-tlsmap/exim/" // where the package installs packaging/exim
)

// An Exim is Debian's, with Debian's configuration or the test's own. It runs
// for each message and queue run and not as a daemon, so that nothing happens
// unless the test asks for it.
type Exim struct {
	Version string // "4.98.2"

	root Root
	sent int
	tag  string // part of recipients' names, unique to each Exim
}

// EximOptions configure an Exim.
type EximOptions struct {
	Files map[string]string // path in the root -> text
	// Shipped is packaging/exim or the test's version of it.
	Shipped fs.FS
	// Debian has lines of update-exim4.conf.conf that replace debianDefaults:
	// "dc_relay_domains" -> "backup.test".
	Debian map[string]string
	// Single is a complete configuration instead of Debian's.
	Single string
}

// debianDefaults are the lines of update-exim4.conf.conf for an internet site
// with split configuration files and no local mail.
var debianDefaults = map[string]string{
	"dc_eximconfig_configtype": "internet", "dc_other_hostnames": "", "dc_local_interfaces": "127.0.0.1", "dc_readhost": "",
	"dc_relay_domains": "", "dc_minimaldns": "false", "dc_relay_nets": "", "dc_smarthost": "", "CFILEMODE": "644",
	"dc_use_split_config": "true", "dc_hide_mailname": "", "dc_mailname_in_oh": "true", "dc_localdelivery": "mail_spool",
}

// StartExim sets up the Exim in the root of setup with that name.
func StartExim(t *testing.T, name string, o EximOptions) *Exim {
	t.Helper()
	e, err := TryExim(t, name, o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TryExim is StartExim, but returns an error if Exim rejects its configuration.
func TryExim(t *testing.T, name string, o EximOptions) (*Exim, error) {
	t.Helper()
	e := &Exim{root: MountRoot(t, name)}
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
	out, err := e.root.Command(eximPath, "-bV").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("exim -bV: %w\n%s", err, out)
	}
	version := regexp.MustCompile(`(?m)^Exim version (\S+)`).FindSubmatch(out)
	if version == nil {
		t.Fatalf("exim -bV prints no version: %s", out)
	}
	e.Version = string(version[1])
	t.Cleanup(func() { e.end(t) })
	return e, nil
}

// ship installs the shipped files as the package does, with split also those
// for Debian's split configuration.
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

// configureDebian makes Debian generate the configuration. It returns an error
// if Exim rejects it.
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
	if out, err := e.root.Command("/usr/sbin/update-exim4.conf").CombinedOutput(); err != nil {
		return fmt.Errorf("update-exim4.conf: %w\n%s", err, out)
	}
	return nil
}

// end shows Exim's log after a failed test.
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

// Run runs Exim as root and returns its output.
func (e *Exim) Run(t *testing.T, args ...string) string {
	t.Helper()
	return e.must(t, e.root.Command(eximPath, args...))
}

// Talk runs an SMTP session on standard input, as if from another host, and
// returns Exim's replies.
func (e *Exim) Talk(t *testing.T, options []string, lines ...string) string {
	t.Helper()
	c := e.root.Command(eximPath, append(options, "-bs", "-oMa", "192.0.2.9")...)
	c.Stdin = strings.NewReader(strings.Join(lines, "\r\n") + "\r\n")
	return e.must(t, c)
}

// Expand makes Exim expand lines and returns its output.
func (e *Exim) Expand(t *testing.T, lines string) string {
	t.Helper()
	c := e.root.Command(eximPath, "-be")
	c.Stdin = strings.NewReader(lines)
	return e.must(t, c)
}

// Program runs one mode of the program on Exim's machine without a
// configuration, and returns its output.
func (e *Exim) Program(t *testing.T, args ...string) string {
	t.Helper()
	return e.must(t, e.root.program(t, args...))
}

// Read returns a file of Exim's machine.
func (e *Exim) Read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(e.root.Path(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Shell runs a script on Exim's machine and returns its output.
func (e *Exim) Shell(t *testing.T, script string, args ...string) string {
	t.Helper()
	c := e.root.Command("/bin/sh", append([]string{"-s"}, args...)...)
	c.Stdin = strings.NewReader(script)
	return e.must(t, c)
}

// Root is Exim's machine.
func (e *Exim) Root() Root { return e.root }

// Name is "Exim" and the version.
func (e *Exim) Name() string { return "Exim " + e.Version }

// KeepsNoVerified reports whether this Exim never reuses connections with a
// server name. Exim 4.100 loses the name, takes it for a different one and
// closes the connection.
func (e *Exim) KeepsNoVerified() bool { return strings.HasPrefix(e.Version, "4.100") }

// Send submits a message to a recipient at the domain and waits for its first
// attempt.
func (e *Exim) Send(t *testing.T, domain string) *Message {
	t.Helper()
	return e.Submit(t, []string{domain}, "-odf")[0]
}

// Queue submits a message to a recipient at the domain for the next queue run.
func (e *Exim) Queue(t *testing.T, domain string) *Message {
	t.Helper()
	return e.Submit(t, []string{domain}, "-odq")[0]
}

// Submit submits one message with a recipient at each domain. Exim's options
// say when it is tried; with -odf, before Submit returns.
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
	c := e.root.Command(eximPath, args...)
	c.Stdin = strings.NewReader("Subject: test\n\nHello.\n")
	e.must(t, c)
	return messages
}

// retry tries a message again, whatever its retry time. Exim logs an outcome
// before it unlocks the message and skips locked messages, so retry asks
// repeatedly.
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

// outcomes returns the attempts to deliver to the recipient.
func (e *Exim) outcomes(t *testing.T, recipient string) []Outcome {
	t.Helper()
	return eximOutcomes(e.Log(t), recipient)
}

// Log returns the lines of Exim's main log.
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
	// A message's id and the rest.
	eximLine = regexp.MustCompile(`^\S+ \S+ (?:\[\d+\] )?(\w{6,}-\w{6,}-\w+) (.*)$`)
	// An attempt's symbol, recipient and the rest.
	eximTry   = regexp.MustCompile(`^(=>|->|==|\*\*) (\S+?):? (.*)$`) // IPv6 literals contain colons
	eximHost  = regexp.MustCompile(` H=(\S+) (\[[^\]]+\])(\*?)`)
	eximCheck = regexp.MustCompile(` CV=(\w+)`)
)

var eximStatus = map[string]string{"=>": "sent", "->": "sent", "==": "deferred", "**": "bounced"}

// eximTLS translates CV= into Postfix's words.
var eximTLS = map[string]string{"yes": "Verified", "dane": "Verified", "no": "Untrusted"}

// eximOutcomes returns the logged attempts to deliver to the recipient. The
// lines of its message since the last attempt belong to an attempt.
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
				o.TLS = "Kept" // another process made the connection and knows the certificate
			}
		}
		found, since = append(found, o), ""
	}
	return found
}

// AddAddress adds an address to this machine. Exim treats it as its own.
func AddAddress(t *testing.T, address string) {
	t.Helper()
	if out, err := exec.Command("ip", "addr", "replace", address, "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("ip addr replace %s: %v: %s", address, err, out)
	}
}

// AddNetwork makes every address of a network local without adding it to an
// interface: Exim does not deliver to 127.0.0.0/8 or an interface's own
// address.
func AddNetwork(t *testing.T, cidr string) {
	t.Helper()
	out, err := exec.Command("ip", "route", "add", "local", cidr, "dev", "lo").CombinedOutput()
	if err != nil {
		t.Fatalf("ip route add local %s: %v: %s", cidr, err, out)
	}
	// For IPv6, servers also need this to listen there.
	if err := os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
}
