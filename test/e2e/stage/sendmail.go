package stage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Paths inside the root.
const (
	sendmailPath = "/usr/sbin/sendmail"
	sendmailMC   = "/etc/mail/sendmail.mc"
)

// A Sendmail is Debian's with Debian's sendmail.mc and the lines of StartSendmail. Like
// Exim, it runs for each message and queue run.
type Sendmail struct {
	Version string // "8.18.2"

	root  Root
	sent  int
	marks int

	settle net.Conn // to the log's socket

	mu  sync.Mutex
	log []string
}

// StartSendmail sets up the sendmail in the root of setup with that name. files are
// written first (path in the root -> text).
func StartSendmail(t *testing.T, name string, files map[string]string) *Sendmail {
	t.Helper()
	s := &Sendmail{root: MountRoot(t, name)}
	for path, text := range files {
		s.root.Write(t, path, text)
	}
	s.root.Write(t, "/etc/resolv.conf", resolvConf)
	s.root.Write(t, "/etc/hosts", "127.0.0.1 localhost\n")
	s.listen(t)
	s.Configure(t, "")
	version := regexp.MustCompile(`(?m)^Version (\S+)`).FindStringSubmatch(s.Run(t, "-bt", "-d0.1"))
	if version == nil {
		t.Fatal("sendmail -d0.1 prints no version")
	}
	s.Version = version[1]
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("sendmail's log:\n%s", strings.Join(s.Log(), "\n"))
		}
	})
	return s
}

// Configure makes sendmail.cf of Debian's sendmail.mc and these lines, before its mailers.
func (s *Sendmail) Configure(t *testing.T, mc string) {
	t.Helper()
	debian, err := os.ReadFile(s.root.Path(sendmailMC))
	if err != nil {
		t.Fatal(err)
	}
	const before = "MAILER_DEFINITIONS\n"
	head, tail, ok := strings.Cut(string(debian), before)
	if !ok {
		t.Fatalf("%s has no line %q", sendmailMC, before)
	}
	const ours = "/etc/mail/test.mc"
	s.root.Write(t, ours, head+"define(`confDOMAIN_NAME', `relay.test')dnl\n"+mc+before+tail)
	cf, err := s.root.Command("/usr/bin/m4", ours).Output()
	if err != nil {
		t.Fatalf("m4: %v", err)
	}
	s.root.Write(t, "/etc/mail/sendmail.cf", string(cf))
}

// Program runs the program on sendmail's machine and returns its output.
func (s *Sendmail) Program(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.root.program(t, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("sts-tlsmap %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// listen takes what sendmail says to syslog.
func (s *Sendmail) listen(t *testing.T) {
	t.Helper()
	path := s.root.Path("/dev/log")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	settle, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { settle.Close() })
	s.settle = settle
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.log = append(s.log, strings.TrimRight(string(b[:n]), "\n\x00"))
			s.mu.Unlock()
		}
	}()
}

// Run runs sendmail as root, with the configuration of the daemon, and returns its output.
func (s *Sendmail) Run(t *testing.T, args ...string) string {
	t.Helper()
	c := s.root.Command(sendmailPath, append([]string{"-Am"}, args...)...)
	out, err := c.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) { // a message that waits is no failure
		t.Fatalf("%s: %v\n%s", strings.Join(c.Args, " "), err, out)
	}
	return string(out)
}

// awaitLog waits until the log has what sendmail said before now.
func (s *Sendmail) awaitLog(t *testing.T) {
	t.Helper()
	s.marks++
	mark := fmt.Sprintf("mark %d", s.marks)
	if _, err := s.settle.Write([]byte(mark)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deliveryTime)
	defer cancel()
	if err := Await(ctx, func() bool { return slices.Contains(s.Log(), mark) }); err != nil {
		t.Fatal("the log does not arrive")
	}
}

// Root is sendmail's machine.
func (s *Sendmail) Root() Root { return s.root }

// Name is "sendmail" and the version.
func (s *Sendmail) Name() string { return "sendmail " + s.Version }

// Log returns the lines of sendmail's log so far.
func (s *Sendmail) Log() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.log...)
}

// Send submits a message to a recipient at the domain and waits for its first attempt.
func (s *Sendmail) Send(t *testing.T, domain string) *Message {
	t.Helper()
	return s.Submit(t, domain)[0]
}

// Submit submits one message with a recipient at each domain and waits for its first attempt.
func (s *Sendmail) Submit(t *testing.T, domains ...string) []*Message {
	t.Helper()
	return s.submit(t, "-odi", domains...)
}

// Queue submits a message to a recipient at the domain for the next RunQueue.
func (s *Sendmail) Queue(t *testing.T, domain string) *Message {
	t.Helper()
	return s.submit(t, "-odq", domain)[0]
}

// RunQueue tries all messages again, in one process.
func (s *Sendmail) RunQueue(t *testing.T) {
	t.Helper()
	s.Run(t, "-q")
	s.awaitLog(t)
}

func (s *Sendmail) submit(t *testing.T, mode string, domains ...string) []*Message {
	t.Helper()
	var messages []*Message
	args := []string{"-Am", mode, "-f", "sender@relay.test"}
	for _, domain := range domains {
		s.sent++
		to := fmt.Sprintf("message%d@%s", s.sent, domain)
		messages = append(messages, &Message{Recipient: to, MTA: s})
		args = append(args, to)
	}
	c := s.root.Command(sendmailPath, args...)
	c.Stdin = strings.NewReader("Subject: test\n\nHello.\n")
	ctx, cancel := context.WithTimeout(t.Context(), deliveryTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.Process.Kill() })
	defer stop()
	out, err := c.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("sendmail: %v\n%s", err, out)
	}
	s.awaitLog(t)
	return messages
}

// retry tries a message again now.
func (s *Sendmail) retry(t *testing.T, id string) {
	t.Helper()
	s.Run(t, "-qI"+id)
	s.awaitLog(t)
}

func (s *Sendmail) outcomes(t *testing.T, recipient string) []Outcome {
	t.Helper()
	return sendmailOutcomes(s.Log(), recipient)
}

var (
	sendmailLine = regexp.MustCompile(`sendmail\[(\d+)\]: (?:(?:STARTTLS=client, )relay=(\S+?)\.?, version=\S+, verify=(\w+)|(\w{14,}): to=(\S+),(.*), stat=(.*)$)?`)
	sendmailHost = regexp.MustCompile(` relay=(\S+?)\.? \[`)
	sendmailTLS  = map[string]string{"OK": "Verified", "TRUSTED": "Verified"}
)

// sendmailOutcomes returns the logged attempts to deliver to the recipient: the last line
// of each process, which may try several hosts.
func sendmailOutcomes(log []string, recipient string) (found []Outcome) {
	try := make(map[string]string) // process -> its lines
	last := ""                     // the process of the last attempt
	tls := make(map[string]string) // process and host -> the verdict on the certificate
	for _, line := range log {
		m := sendmailLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		pid := m[1]
		try[pid] += line + "\n"
		if m[2] != "" {
			tls[pid+m[2]] = "Untrusted"
			if good, ok := sendmailTLS[m[3]]; ok {
				tls[pid+m[2]] = good
			}
		}
		if m[4] == "" || !strings.Contains(m[5], "<"+recipient+">") && m[5] != recipient {
			continue
		}
		o := Outcome{QueueID: m[4], Reason: m[7], Relay: "none", Log: try[pid]}
		if host := sendmailHost.FindStringSubmatch(m[6]); host != nil {
			o.Relay, o.TLS = host[1], tls[pid+host[1]]
		}
		switch {
		case m[7] == "queued":
			continue
		case strings.HasPrefix(m[7], "Sent"):
			o.Status = "sent"
		case strings.Contains(m[6], "dsn=4."):
			o.Status = "deferred"
		default:
			o.Status = "bounced"
		}
		if pid == last {
			found = found[:len(found)-1]
		}
		found, last = append(found, o), pid
	}
	return found
}
