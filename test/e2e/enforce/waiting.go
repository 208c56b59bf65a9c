package enforce

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/waiting"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// causes are the causes that -waiting may print for a deferred message, by the log text
// that the row expects. Both MTAs keep the reason of the last host only. Without an
// entry, -waiting must print nothing.
var causes = map[string][]string{
	notOffered: {"no-starttls"}, selfSigned: {"certificate"}, expired: {"certificate"}, otherName: {"certificate"},
	notListed: {"unlisted"}, noPolicy: {"no-usable-mx"}, noMatch: {"certificate", "dane"}, tlsaFailed: {"dane"},

	noTLS: {"no-starttls"}, badCert: {"certificate"}, refusedTLS: {"handshake"}, brokenTLS: {"handshake"}, unlisted: {"unlisted"},
	stsNoTLS: {"no-starttls"}, stsRefused: {"handshake"}, stsBroken: {"handshake"}, stsBadCert: {"certificate"}, stsBadName: {"certificate"}, stsUnlisted: {"unlisted"}, stsNoPolicy: {"no-usable-mx"},
	stsBadTLSA: {"dane"},
	noMX:       {"dns"}, noAddress: {"dns"}, allIgnored: {"no-host"}, takesNone: {"no-host"}, badTLSA: {"dane", "certificate"}, noTLSA: {"dane"},
}

// onMachine returns a command that runs the program on the MTA's machine, with the
// daemon's configuration.
func (w *world) onMachine(args ...string) *exec.Cmd {
	root := w.mta.(interface{ Root() stage.Root }).Root()
	return root.Command("/run/sts-tlsmap", append([]string{"-config", w.daemon.Config}, args...)...)
}

// share lets programs on the MTA's machine reach the daemon.
func (w *world) share(t *testing.T) {
	t.Helper()
	w.daemon.In(t, w.mta.(interface{ Root() stage.Root }).Root())
	w.daemon.Wrapper = nil // the daemon itself stays where it is
}

// explainsQueue runs -waiting with the messages of the rows in the queue.
func (w *world) explainsQueue(t *testing.T, played []row) {
	c := w.onMachine("-waiting", "-json")
	out, err := c.Output()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("-waiting: %v, want exit status 1\n%s", err, out)
	}
	found := make(map[string]waiting.Group)
	for line := range strings.Lines(string(out)) {
		var g waiting.Group
		if err := json.Unmarshal([]byte(line), &g); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		found[g.Domain] = g
	}
	for _, r := range played {
		d := w.played[r.domain]
		if !w.sent[r.domain] {
			continue // the row was not selected
		}
		want := w.fateOf(r, d)
		if w.exim != nil {
			want = want.ofExim(stage.Outcome{})
		}
		if w.sendmail != nil {
			want = want.ofSendmail()
		}
		allowed := causes[want.reason]
		if strings.Contains(want.reason, noUsable) {
			allowed = []string{"no-usable-mx"}
		}
		g, waits := found[d.Name]
		switch {
		case waits != (want.status == "deferred" && allowed != nil):
			t.Errorf("%s: %s, and -waiting has it: %t (%+v)", d.Name, want, waits, g)
		case waits && !slices.Contains(allowed, g.Cause):
			t.Errorf("%s: the cause is %s, want one of %q: %+v", d.Name, g.Cause, allowed, g)
		case waits && g.Messages != 1:
			t.Errorf("%s: %d messages", d.Name, g.Messages)
		case waits && want.reason == noMatch && slices.ContainsFunc(g.Steps, func(s waiting.Step) bool { return strings.Contains(s.Command, "-exempt") }):
			t.Errorf("%s: -exempt does not end DANE: %+v", d.Name, g.Steps)
		}
	}
}

// leadsToRemedy is the whole knowledge of somebody who has read nothing: mail to
// wrongname.test waits.
func leadsToRemedy(t *testing.T, w *world) {
	const domain = "wrongname.test"
	d := w.lab.Domain(domain, testlab.With{MailCert: testlab.CertWrongName})
	m := w.mta.Send(t, domain)
	o := m.Outcome(t)
	if o.Status != "deferred" {
		t.Fatalf("the message is %s", o)
	}

	// The first command.
	out, err := w.onMachine("-waiting").Output()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("-waiting: %v\n%s", err, out)
	}
	section := regexp.MustCompile(`(?m)^wrongname\.test: (.+\n)+`).FindString(string(out))
	if !strings.Contains(section, "certificate") {
		t.Fatalf("-waiting does not name the cause:\n%s", out)
	}
	session := "$ sts-tlsmap -waiting\n" + section

	// Who wants to know more sees the name in the certificate.
	probed, err := w.onMachine("-waiting", "-probe", "-json").Output()
	if found := regexp.MustCompile(`(?m)^.*"domain":"wrongname\.test".*"probe":"would wait: .*$`).FindString(string(probed)); found == "" {
		t.Errorf("-waiting -probe does not find that the mail would wait (%v):\n%s", err, probed)
	} else {
		t.Logf("probed: %s", found)
	}

	// The second one, as the first prints it. It lets the message out at the next try.
	exempt := regexp.MustCompile(`(?m)^ {6}sts-tlsmap (-exempt .*)$`).FindStringSubmatch(section)
	if exempt == nil {
		t.Fatalf("-waiting prints no remedy:\n%s", section)
	}
	said, err := w.onMachine(strings.Fields(exempt[1])...).Output()
	if err != nil {
		t.Fatalf("%s: %v", exempt[1], err)
	}
	session += "\n$ sts-tlsmap " + exempt[1] + "\n" + string(said)
	again := m.Retry(t, o)
	if again.Status != "sent" || len(d.Mail[0].Messages()) != 1 {
		t.Errorf("after the exemption: %s", again)
	}
	if w.postfix != nil {
		wantOnPage(t, session)
	}
	if out, _ := w.onMachine("-waiting").Output(); strings.Contains(string(out), domain) {
		t.Errorf("nothing waits any more, and -waiting says:\n%s", out)
	}
}

// changing are the parts of a session that differ each time.
var changing = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+|\((?:in )?[0-9smhd]+(?: ago)?\)|\b[0-9A-F]{6,12}\b`)

// wantOnPage checks that docs/mail-waits.md has the session.
func wantOnPage(t *testing.T, session string) {
	t.Helper()
	page, err := os.ReadFile("../../../docs/mail-waits.md")
	if err != nil {
		t.Fatal(err)
	}
	indented := strings.ReplaceAll("    "+strings.ReplaceAll(strings.TrimSpace(session), "\n", "\n    "), "    \n", "\n")
	form := func(s string) string { return changing.ReplaceAllString(s, "X") }
	if !strings.Contains(form(string(page)), form(indented)) {
		t.Errorf("docs/mail-waits.md does not have this session:\n%s", indented)
	}
}
