package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Paths inside the root.
const (
	maillog       = "/var/log/postfix.log"
	queueDir      = "/var/spool/postfix"
	deferredQueue = queueDir + "/deferred" // has directories named after an id's first letter
)

// A Postfix is Debian's with Debian's main.cf and master.cf and the settings of
// StartPostfix. Its smtp(8) runs in a chroot.
type Postfix struct {
	Version string // mail_version: "3.10.13"

	root Root
	sent int
}

// StartPostfix starts the Postfix in the root of setup with that name. settings
// are lines of main.cf after the common ones. files are written first (path in
// the root -> text).
func StartPostfix(t *testing.T, name string, files map[string]string, settings ...string) *Postfix {
	t.Helper()
	p := &Postfix{root: MountRoot(t, name)}
	p.Version = strings.TrimSpace(p.run(t, "postconf", "-h", "mail_version"))
	for path, text := range files {
		p.root.Write(t, path, text)
	}
	p.writeResolvConf(t, resolvConf)
	for _, top := range []string{"", queueDir} {
		p.root.Write(t, top+"/etc/hosts", "127.0.0.1 localhost\n")
	}
	p.run(t, "postconf", append([]string{
		"maillog_file = " + maillog,
		"myhostname = relay.test",
		"mydestination =",
		"smtp_tls_security_level = may",
		"smtp_tls_loglevel = 1",
		"inet_protocols = ipv4",
		"in_flow_delay = 0", // no delays for submissions
		// Mail arrives through sendmail(1). Port 25 belongs to the mail hosts.
		"master_service_disable = inet",
	}, settings...)...)
	t.Cleanup(func() { p.stop(t) })
	p.run(t, "postfix", "start")
	return p
}

// writeResolvConf writes resolv.conf, also in the queue directory, smtp(8)'s
// chroot.
func (p *Postfix) writeResolvConf(t *testing.T, text string) {
	t.Helper()
	for _, top := range []string{"", queueDir} {
		p.root.Write(t, top+"/etc/resolv.conf", text)
	}
}

// TrustAD restarts Postfix with or without trust-ad in its resolv.conf; the
// default is with.
func (p *Postfix) TrustAD(t *testing.T, trust bool) {
	t.Helper()
	text := resolvConf
	if !trust {
		text = "nameserver " + Resolver + "\n"
	}
	p.writeResolvConf(t, text)
	p.restart(t)
}

// Program runs the program on Postfix's machine and returns its output.
func (p *Postfix) Program(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.root.program(t, args...).Output()
	if err != nil {
		t.Fatalf("sts-tlsmap %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// Write writes a file on Postfix's machine.
func (p *Postfix) Write(t *testing.T, path, text string) {
	t.Helper()
	p.root.Write(t, path, text)
}

// Unset removes settings from main.cf. They stay in force until Configure.
func (p *Postfix) Unset(t *testing.T, names ...string) {
	t.Helper()
	p.run(t, "postconf", append([]string{"-X"}, names...)...)
}

// Configure appends text to main.cf and restarts Postfix.
func (p *Postfix) Configure(t *testing.T, text string) {
	t.Helper()
	f, err := os.OpenFile(p.root.Path("/etc/postfix/main.cf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(writeString(f, "\n"+text), f.Close()); err != nil {
		t.Fatal(err)
	}
	p.restart(t)
}

// Postmap looks up a key with postmap -q. It returns "" if there is no entry.
func (p *Postfix) Postmap(t *testing.T, key, table string) string {
	t.Helper()
	out, err := p.root.Command("/usr/sbin/postmap", "-q", key, table).CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 && len(out) == 0 {
		return ""
	} else if err != nil {
		t.Fatalf("postmap -q %s %s: %v\n%s", key, table, err, out)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// restart is certain to apply settings; after a reload, a busy smtp(8) would
// continue.
func (p *Postfix) restart(t *testing.T) {
	t.Helper()
	p.run(t, "postfix", "stop")
	p.run(t, "postfix", "start")
}

// stop stops Postfix and shows its log after a failed test.
func (p *Postfix) stop(t *testing.T) {
	if out, err := p.root.Command("/usr/sbin/postfix", "stop").CombinedOutput(); err != nil {
		t.Errorf("postfix stop: %v\n%s", err, out)
	}
	if t.Failed() {
		t.Logf("Postfix's log:\n%s", strings.Join(p.log(t), "\n"))
	}
}

// run runs a command inside the root and returns its output.
func (p *Postfix) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := p.root.Command("/usr/sbin/"+name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Root is Postfix's machine.
func (p *Postfix) Root() Root { return p.root }

// Name is "Postfix" and the version.
func (p *Postfix) Name() string { return "Postfix " + p.Version }

// AtLeast reports whether the version is at least the given one, "3.10.5".
func (p *Postfix) AtLeast(version string) bool {
	return slices.Compare(numbers(p.Version), numbers(version)) >= 0
}

func numbers(version string) []int {
	var v []int
	for part := range strings.SplitSeq(version, ".") {
		n := 0
		fmt.Sscan(part, &n)
		v = append(v, n)
	}
	return v
}

// Send submits a message to a recipient at the domain, as a local user would.
func (p *Postfix) Send(t *testing.T, domain string) *Message {
	t.Helper()
	return p.SendWith(t, domain, "")
}

// SendWith is Send with more header lines.
func (p *Postfix) SendWith(t *testing.T, domain, header string) *Message {
	t.Helper()
	p.sent++
	m := &Message{Recipient: fmt.Sprintf("message%d@%s", p.sent, domain), MTA: p}
	p.submit(t, header, m.Recipient)
	return m
}

// SendMany submits one message to n recipients at the domain.
func (p *Postfix) SendMany(t *testing.T, domain string, n int) {
	t.Helper()
	recipients := make([]string, n)
	for i := range recipients {
		recipients[i] = fmt.Sprintf("many%d@%s", i, domain)
	}
	p.submit(t, "", recipients...)
}

func (p *Postfix) submit(t *testing.T, header string, recipients ...string) {
	t.Helper()
	c := p.root.Command("/usr/sbin/sendmail", append([]string{"-f", "sender@relay.test"}, recipients...)...)
	c.Stdin = strings.NewReader(header + "Subject: for " + recipients[0] + "\n\nHello.\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("sendmail: %v\n%s", err, out)
	}
}

// Log returns the lines of Postfix's log so far.
func (p *Postfix) Log(t *testing.T) []string {
	t.Helper()
	return p.log(t)
}

// outcomes returns the attempts to deliver to the recipient.
func (p *Postfix) outcomes(t *testing.T, recipient string) []Outcome {
	t.Helper()
	return outcomes(p.log(t), recipient)
}

// retry tries a message again. Postfix logs an outcome before the message is
// back in the deferred queue, where postqueue looks for it.
func (p *Postfix) retry(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deliveryTime)
	defer cancel()
	err := Await(ctx, func() bool {
		files, err := filepath.Glob(p.root.Path(filepath.Join(deferredQueue, "*", id)))
		return err == nil && len(files) > 0
	})
	if err != nil {
		t.Fatalf("message %s does not arrive in the deferred queue", id)
	}
	p.run(t, "postqueue", "-i", id)
}

// log returns the complete lines of Postfix's log.
func (p *Postfix) log(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(p.root.Path(maillog))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	return lines[:len(lines)-1]
}

var (
	smtpLine     = regexp.MustCompile(`postfix/smtp\[(\d+)\]: (.*)`)
	deliveryLine = regexp.MustCompile(`^(\w+): to=<([^>]*)>,.* relay=([^,]+),.* status=(\w+) \((.*)\)$`)
	tlsLine      = regexp.MustCompile(`(\w+) TLS connection established to ([^ ]+):`)
)

// outcomes returns the logged attempts to deliver to the recipient. An smtp(8)
// does one delivery at a time, and most of its lines do not name the message:
// an attempt has the lines since the process's last delivery.
func outcomes(log []string, recipient string) []Outcome {
	var found []Outcome
	try := make(map[string]string) // process -> lines since its last delivery
	for _, line := range log {
		m := smtpLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		pid, text := m[1], m[2]
		try[pid] += text + "\n"
		m = deliveryLine.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		if id, to, relay, status, reason := m[1], m[2], m[3], m[4], m[5]; to == recipient {
			found = append(found, Outcome{QueueID: id, Status: status, Relay: relay, Reason: reason,
				TLS: tlsWith(relay, try[pid]), Log: try[pid]})
		}
		delete(try, pid)
	}
	return found
}

// tlsWith returns the verdict on the TLS connection to relay in the log of an
// attempt.
func tlsWith(relay, log string) string {
	for _, m := range tlsLine.FindAllStringSubmatch(log, -1) {
		if m[2] == relay {
			return m[1]
		}
	}
	return ""
}
