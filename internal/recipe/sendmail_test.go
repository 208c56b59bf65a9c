package recipe_test

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/recipe"
)

// A pantry is a machine with a sendmail; each test spoils it in its way.
type pantry struct {
	c    recipe.SendmailConf
	d    recipe.Daemon
	root fstest.MapFS
}

func withSendmail() pantry {
	return pantry{
		recipe.SendmailConf{Version: recipe.Version{Major: 8, Minor: 18, Patch: 2}, Support: []string{"DANE", "_FFR_MTA_STS"}, Text: "V10\nDS\n#O CACertFile\n#O DANE=true\n"},
		recipe.Daemon{Listen: []string{"unix:/run/sts-tlsmap/socketmap.sock", "inet:127.0.0.1:8461"}, Maps: mta.Builtin(), LookupTimeout: 20 * time.Second},
		fstest.MapFS{"etc/ssl/certs/ca-certificates.crt": {}},
	}
}

func (p pantry) recipe() (string, error) {
	r, err := recipe.Sendmail(p.c, p.root, p.d)
	return r.String(), err
}

// linesFor returns the lines of m4 that are no comments.
func linesFor(text string) (lines string) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "FEATURE(") || strings.HasPrefix(line, "define(") {
			lines += line
		}
	}
	return lines
}

func TestTheShippedLinesForSendmailAreThoseOfTheRecipe(t *testing.T) {
	shipped, err := os.ReadFile("../../packaging/sendmail/sts-tlsmap.m4")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/sendmail.md")
	if err != nil {
		t.Fatal(err)
	}
	text, err := withSendmail().recipe()
	if err != nil || linesFor(text) != linesFor(string(shipped)) || linesFor(text) == "" || strings.Contains(text, "WARNING") {
		t.Errorf("%v\n%s\nshipped:\n%s", err, text, shipped)
	}
	for line := range strings.Lines(linesFor(text)) {
		if !strings.Contains(string(page), "    "+line) {
			t.Errorf("docs/sendmail.md does not have %s", line)
		}
	}
}

func TestNoCommentOfTheRecipeMeansAnythingToM4(t *testing.T) {
	text, err := withSendmail().recipe()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "dnl #") && line != "\n" && linesFor(line) == "" {
			t.Errorf("%q", line)
		}
	}
}

func TestTheRecipeFitsTheMachineOfSendmail(t *testing.T) {
	for want, spoil := range map[string]func(*pantry){
		"socket -d30 -T<TMPF> inet6:8461@::1'":                   func(p *pantry) { p.d.Listen = []string{"inet:[::1]:8461"} },
		"socket -d30 -T<TMPF> unix:/run/x.sock'":                 func(p *pantry) { p.d.Listen = []string{"unix:/run/x.sock"} },
		"socket -d70 -T":                                         func(p *pantry) { p.d.LookupTimeout = time.Minute },
		"dnl # already set\n":                                    func(p *pantry) { p.c.Text += "Ksts socket -d30 -T<TMPF> inet:8461@127.0.0.1\n" },
		"WARNING: confDANE is on":                                func(p *pantry) { p.c.Text += "O DANE=True\n" },
		"WARNING: inet:192.0.2.1:8461 is not a loopback address": func(p *pantry) { p.d.Listen = []string{"inet:192.0.2.1:8461"} },
		"WARNING: there is a mailertable":                        func(p *pantry) { p.c.Text += "Kmailertable hash -o /etc/mail/mailertable.db\n" },
		"WARNING: no file of certificate authorities was found":  func(p *pantry) { p.root = nil },
		"WARNING: map sts of the daemon has enforce = false":     func(p *pantry) { p.d.Maps[5].Enforce = false },
		"sendmail 8.18.1, which checks a policy for the first":   func(p *pantry) { p.c.Version.Patch = 1 },
		"built without _FFR_MTA_STS":                             func(p *pantry) { p.c.Support = nil },
		"sends mail to smart.example, but asks for the policies": func(p *pantry) { p.c.Text += "DSsmart.example\n"; p.c.Text = strings.Replace(p.c.Text, "DS\n", "", 1) },
		`no map sts with format "sendmail"`:                      func(p *pantry) { p.d.Maps = p.d.Maps[:5] },
		"no endpoint that sendmail can ask":                      func(p *pantry) { p.d.Listen = nil },
	} {
		p := withSendmail()
		spoil(&p)
		text, err := p.recipe()
		if err != nil {
			text = err.Error()
		}
		if text = strings.ReplaceAll(text, "\ndnl #  ", ""); !strings.Contains(text, want) {
			t.Errorf("without %q:\n%s", want, text)
		}
	}
}
