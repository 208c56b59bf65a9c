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

// Where things are inside the root.
const (
	maillog       = "/var/log/postfix.log"
	queueDir      = "/var/spool/postfix"
	deferredQueue = queueDir + "/deferred" // of folders, by the first letter of an id
)

// A Postfix is Debian's, started as Debian starts it: its own main.cf and
// master.cf with what StartPostfix sets, its smtp(8) in a chroot.
type Postfix struct {
	Version string // as mail_version says: "3.10.13"

	root Root
	sent int
}

// StartPostfix starts the Postfix in the root that setup calls name. Each
// setting is a line of main.cf, "name = value"; they come after those that
// every relay of the tests has. Settings may name files by their path in the
// root; write those first with files (path -> text).
func StartPostfix(t *testing.T, name string, files map[string]string, settings ...string) *Postfix {
	t.Helper()
	p := &Postfix{root: mountRoot(t, name)}
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
		"in_flow_delay = 0", // do not slow down the tests' submissions
		// Mail comes in by sendmail(1): no smtpd, port 25 is the mail hosts'.
		"master_service_disable = inet",
	}, settings...)...)
	t.Cleanup(func() { p.stop(t) })
	p.run(t, "postfix", "start")
	return p
}

// writeResolvConf writes resolv.conf, also where smtp(8) reads it: it runs
// chrooted to the queue directory.
func (p *Postfix) writeResolvConf(t *testing.T, text string) {
	t.Helper()
	for _, top := range []string{"", queueDir} {
		p.root.Write(t, top+"/etc/resolv.conf", text)
	}
}

// TrustAD has Postfix run from now on with trust-ad in its resolv.conf, as it
// does at first, or without.
func (p *Postfix) TrustAD(t *testing.T, trust bool) {
	t.Helper()
	text := resolvConf
	if !trust {
		text = "nameserver " + Resolver + "\n"
	}
	p.writeResolvConf(t, text)
	p.restart(t)
}

// Program runs the program on Postfix' machine, and returns what it printed.
func (p *Postfix) Program(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.root.program(t, args...).Output()
	if err != nil {
		t.Fatalf("sts-tlsmap %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// Write writes a file on Postfix' machine.
func (p *Postfix) Write(t *testing.T, path, text string) {
	t.Helper()
	p.root.Write(t, path, text)
}

// Unset takes settings out of main.cf, as an editor would. They are in force
// until Configure.
func (p *Postfix) Unset(t *testing.T, names ...string) {
	t.Helper()
	p.run(t, "postconf", append([]string{"-X"}, names...)...)
}

// Configure adds text to the end of main.cf, and starts Postfix anew.
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

// Postmap asks a table for a key, as postmap -q does; empty: there is nothing.
func (p *Postfix) Postmap(t *testing.T, key, table string) string {
	t.Helper()
	out, err := p.root.command("/usr/sbin/postmap", "-q", key, table).CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 && len(out) == 0 {
		return ""
	} else if err != nil {
		t.Fatalf("postmap -q %s %s: %v\n%s", key, table, err, out)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// restart takes settings up for certain: reload would leave an smtp(8) that is
// at work.
func (p *Postfix) restart(t *testing.T) {
	t.Helper()
	p.run(t, "postfix", "stop")
	p.run(t, "postfix", "start")
}

// stop stops Postfix, and shows what it logged if the test failed.
func (p *Postfix) stop(t *testing.T) {
	if out, err := p.root.command("/usr/sbin/postfix", "stop").CombinedOutput(); err != nil {
		t.Errorf("postfix stop: %v\n%s", err, out)
	}
	if t.Failed() {
		t.Logf("Postfix's log:\n%s", strings.Join(p.log(t), "\n"))
	}
}

// run runs a command inside the root and returns what it printed.
func (p *Postfix) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := p.root.command("/usr/sbin/"+name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Name is "Postfix" and the version.
func (p *Postfix) Name() string { return "Postfix " + p.Version }

// AtLeast says whether the version is the given one, "3.10.5", or later.
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

// Send submits a message to somebody at the domain, as a local user would.
func (p *Postfix) Send(t *testing.T, domain string) *Message {
	t.Helper()
	p.sent++
	m := &Message{Recipient: fmt.Sprintf("message%d@%s", p.sent, domain), MTA: p}
	c := p.root.command("/usr/sbin/sendmail", "-f", "sender@relay.test", m.Recipient)
	c.Stdin = strings.NewReader("Subject: for " + m.Recipient + "\n\nHello.\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("sendmail: %v\n%s", err, out)
	}
	return m
}

// outcomes finds the tries to deliver to the recipient.
func (p *Postfix) outcomes(t *testing.T, recipient string) []Outcome {
	t.Helper()
	return outcomes(p.log(t), recipient)
}

// retry has a message tried again. The outcome of the last try is logged
// before the message is back in the deferred queue, and only there does
// postqueue find it.
func (p *Postfix) retry(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deliveryTime)
	defer cancel()
	err := Await(ctx, func() bool {
		files, err := filepath.Glob(p.root.Path(filepath.Join(deferredQueue, "*", id)))
		return err == nil && len(files) > 0
	})
	if err != nil {
		t.Fatalf("message %s does not come to the deferred queue", id)
	}
	p.run(t, "postqueue", "-i", id)
}

// log returns the lines of Postfix's log so far. A last line without its end
// is left out: it is being written.
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

// outcomes finds in the log the tries to deliver to the recipient. An smtp(8)
// makes one delivery after the other, and most of its lines do not name the
// message: those of a try are the ones since its last delivery.
func outcomes(log []string, recipient string) []Outcome {
	var found []Outcome
	try := make(map[string]string) // process -> its lines since its last delivery
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

// tlsWith finds in the log of a try how TLS with the relay was seen.
func tlsWith(relay, log string) string {
	for _, m := range tlsLine.FindAllStringSubmatch(log, -1) {
		if m[2] == relay {
			return m[1]
		}
	}
	return ""
}
