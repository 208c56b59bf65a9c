package enforce

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// recipeFiles are the files of packaging/exim whose lines are removed in turn.
var recipeFiles = []string{"macros", "routers", "transport", "retry"}

// recipeParts are replacements within lines: file, old text, new text.
var recipeParts = [][3]string{
	{"macros", "STS_TLSMAP_TIMEOUT = 30s", "STS_TLSMAP_TIMEOUT = 5s"}, // Exim's own default
	{"macros", "! +local_domains : ", ""},
	{"macros", " : ! +relay_to_domains", ""},
	{"routers", ":cache=yes", ""},
	{"routers", "${strlen:exim STS_TLSMAP_KEY}", "20"},
	{"routers", `:(.*),$`, `:(.*)`},
	{"routers", `OK .+|`, `OK |`},
	{"routers", `NOTFOUND )$`, `NOTFOUND|TEMP)`},
	{"routers", `{^TEMP }`, `{^PERM }`},
	{"routers", " 0.0.0.0 ;", ""},
	{"routers", " 127.0.0.0/8 ;", ""},
	{"routers", " ; ::/127", ""},
}

// wholeEvery is the number of broken recipes after which the whole one is tried
// again. A failure counts only if the whole recipe has none; a change in the
// lab would make every line appear necessary.
const wholeEvery = 10

// wholeTries is how often the whole recipe may be tried. A change in the lab
// persists, but Exim 4.96 sometimes runs a queue in another order.
const wholeTries = 2

// deadly are lines whose removal must deliver mail to a certain wrong host;
// other failures do not suffice.
var deadly = map[string]string{
	"hosts_require_tls = *": "mx1.probe-clear.test got the message",
	"tls_verify_hosts = *":  "mx1.probe-bad.test got the message",
}

// brokenLines changes the recipe in one place at a time and expects a failure
// each time. The whole recipe has none.
func brokenLines(t *testing.T, w *world) {
	p := w.newProbe(t)
	whole := readShipped(t, recipeFiles...)
	p.mustHold(t, w, whole)
	for _, name := range recipeFiles {
		text := string(whole[name].Data)
		before, after, reports := "", text, false
		for _, line := range logicalLines(text) {
			head, tail, _ := strings.Cut(after, line) // not in text: two routers have lines in common
			before, after = before+head, line+tail
			// What is for TLS reports has tests of its own, in test/e2e/tlsrpt.
			if reports = reports || strings.HasPrefix(line, ".ifdef STS_TLSMAP_REPORT"); reports || strings.HasPrefix(line, "STS_TLSMAP_EVENT") {
				reports = reports && line != ".endif\n"
				continue
			}
			if strings.HasPrefix(line, "STS_TLSMAP_TIMEOUT") {
				continue // Exim would wait too long without it
			}
			if strings.Contains(line, "hosts_nopass_tls") && w.exim.KeepsNoVerified() {
				continue
			}
			p.mustMatter(t, w, whole, name, line, before+tail)
			before, after = before+line, tail
		}
	}
	for _, part := range recipeParts {
		text := string(whole[part[0]].Data)
		at := strings.LastIndex(text, part[1]) // the router for TLS reports is before ours
		if at < 0 {
			t.Errorf("%s does not contain %q", part[0], part[1])
			continue
		}
		p.mustMatter(t, w, whole, part[0], part[1], text[:at]+part[2]+text[at+len(part[1]):])
	}
	p.mustHold(t, w, whole)
}

// mustHold expects no failure with the whole recipe.
func (p *probe) mustHold(t *testing.T, w *world, whole fs.FS) {
	t.Helper()
	var found []string
	for range wholeTries {
		if found = p.try(t, w, whole); len(found) == 0 {
			return
		}
		t.Logf("with the whole recipe, after %d broken ones: %s", p.broken, strings.Join(found, "\n"))
	}
	t.Fatalf("with the whole recipe, %d times: %s", wholeTries, strings.Join(found, "\n"))
}

// logicalLines returns a file's lines without comments, continuation lines
// joined.
func logicalLines(text string) (lines []string) {
	for text != "" {
		end := 0
		for {
			n := strings.IndexByte(text[end:], '\n')
			end += n + 1
			if end < 2 || text[end-2] != '\\' {
				break
			}
		}
		if line := text[:end]; strings.TrimSpace(line) != "" && line[0] != '#' {
			lines = append(lines, line)
		}
		text = text[end:]
	}
	return lines
}

// mustMatter expects a failure of the recipe in which text replaces one file.
func (p *probe) mustMatter(t *testing.T, w *world, whole fstest.MapFS, name, what, text string) {
	t.Helper()
	found := p.try(t, w, replaced(whole, name, text))
	if !mattered(t, name, what, found) {
		return
	}
	if line := strings.TrimSpace(what); name == "transport" && strings.HasSuffix(line, "= *") {
		damage := cmp.Or(deadly[line], " got the message (over TLS: ") // any host that must not get it
		if !slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, damage) }) {
			t.Errorf("without %q want the failure %q: %s", line, damage, strings.Join(found, "\n"))
		}
	}
	if p.broken++; p.broken%wholeEvery == 0 {
		p.mustHold(t, w, whole)
	}
}

// A probe is a short version of the table: domains and the fates of their mail.
type probe struct {
	domains []string
	fates   []fate
	hosts   []*testlab.MailHost

	honest             *testlab.Domain
	bad, plainAtShared *testlab.Domain
	batched, kept      disguise
	loop               *testlab.Domain
	alias              alias
	reply              atomic.Pointer[impostorsReply] // nil: forward to the daemon and count
	asked              atomic.Int64

	lied   atomic.Int64 // replies that the impostor invented
	broken int          // broken recipes tried so far
}

// An impostorsReply is an invented reply and its delay.
type impostorsReply struct {
	text string
	took time.Duration
}

func (w *world) newProbe(t *testing.T) *probe {
	t.Helper()
	p := new(probe)
	add := func(d *testlab.Domain, want func(*testlab.Domain) fate) *testlab.Domain {
		p.domains, p.fates, p.hosts = append(p.domains, d.Name), append(p.fates, want(d)), append(p.hosts, d.Mail...)
		return d
	}
	toIt := func(d *testlab.Domain) fate { return verified(d.Mail[0]) }
	clear := func(d *testlab.Domain) fate { return inClear(d.Mail[0]) }
	wait := func(why string) func(*testlab.Domain) fate {
		return func(*testlab.Domain) fate { return deferred(why) }
	}
	stripped := testlab.With{MailFault: testlab.NoSTARTTLS}

	p.honest = add(w.lab.Domain("probe.test", testlab.With{}), toIt)
	add(w.lab.Domain("probe-clear.test", stripped), wait(noTLS))
	p.bad = add(w.lab.Domain("probe-bad.test", testlab.With{MailCert: testlab.CertSelfSigned}), wait(badCert))
	add(w.lab.Domain("probe-plain.test", testlab.With{NoPolicy: true, MailFault: testlab.NoSTARTTLS}), clear)
	add(w.lab.Domain("probe-unlisted.test", testlab.With{MX: []string{"mx.elsewhere.test"}}), wait(": MTA-STS: probe-unlisted.test: "+unlisted+"\n"))
	add(w.lab.Domain("local.test", testlab.With{}), func(*testlab.Domain) fate { return bounced("Unrouteable address") })
	backup := w.played[backupDomain]
	if backup == nil {
		backup = w.domain(t, eximRows[slices.IndexFunc(eximRows, func(r row) bool { return r.domain == backupDomain })])
	}
	add(backup, clear)

	gone := w.lab.MailHost("mx2.probe-gone.test", "")
	goneDomain := w.lab.Domain("probe-gone.test", testlab.With{Mail: []*testlab.MailHost{gone}, MX: []string{"*.probe-gone.test"}})
	w.lab.Set("probe-gone.test. 300 IN MX 10 mx1.probe-gone.test.", "probe-gone.test. 300 IN MX 20 mx2.probe-gone.test.")
	add(goneDomain, toIt)
	for i, address := range []string{"A 127.0.0.1", "A 0.0.0.0", "AAAA ::1"} {
		name := fmt.Sprintf("probe-loop%d.test", i)
		d := w.lab.Domain(name, testlab.With{Mail: []*testlab.MailHost{w.lab.MailHost("mx2."+name, "")}, MX: []string{"*." + name}})
		w.lab.Set(name+". 300 IN MX 10 mx1."+name+".", name+". 300 IN MX 20 mx2."+name+".", "mx1."+name+". 300 IN "+address)
		add(d, toIt)
	}
	p.plainAtShared = w.lab.Domain("probe-shared.test", testlab.With{Mail: p.bad.Mail, NoPolicy: true})
	p.batched, p.kept = w.newDisguise(t, "probe-batch"), w.newDisguise(t, "probe-kept")
	p.loop, p.alias = w.newLoop(t, "probe-here.test"), w.newAlias(t, "probe-alias")
	p.listen(t)
	return p
}

// listen starts an impostor that forwards to the daemon or sends the configured
// reply.
func (p *probe) listen(t *testing.T) {
	listenInstead(t, func(c net.Conn) {
		if r := p.reply.Load(); r != nil {
			slow, cancel := context.WithTimeout(t.Context(), r.took)
			defer cancel()
			io.Copy(io.Discard, c) // until Exim half-closes
			if r.took > 0 {
				<-slow.Done()
			}
			p.lied.Add(1)
			io.WriteString(c, r.text)
			return
		}
		p.asked.Add(1)
		passOn(c)
	})
}

// try returns the failures with a recipe.
func (p *probe) try(t *testing.T, w *world, recipe fs.FS) []string {
	t.Helper()
	v := *w
	e, err := w.tryExim(t, stage.EximOptions{
		Shipped: recipe,
		Single:  withOwnData(fmt.Sprintf(single, "", "")),
		Files:   map[string]string{ownFile: "  helo_data = " + ownHelo + "\n"},
	})
	if err != nil {
		return []string{"Exim rejects its configuration: " + strings.ReplaceAll(err.Error(), "\n", " ")}
	}
	v.exim = e
	for _, step := range []func(*testing.T, *world) []string{p.table, p.silence, p.nonsense, p.shared, p.aliases, p.looped, p.patience, p.alias.fails} {
		if found := step(t, &v); len(found) > 0 {
			return found
		}
	}
	return nil
}

// table sends one message to all domains.
func (p *probe) table(t *testing.T, v *world) (found []string) {
	p.reply.Store(nil)
	p.asked.Store(0)
	// The first domain has two recipients but needs only one lookup.
	messages := v.exim.Submit(t, append([]string{p.domains[0]}, p.domains...), foreground, askOther)
	for i, want := range p.fates {
		m := messages[i+1]
		found = append(found, differences(m, m.Outcome(t), want, p.hosts...)...)
	}
	if n := int(p.asked.Load()); n != len(p.domains)-2 { // two domains need no lookup
		found = append(found, fmt.Sprintf("%d lookups for %d domains", n, len(p.domains)))
	}
	for _, got := range p.honest.Mail[0].Messages() {
		if got.Helo != ownHelo {
			found = append(found, "EHLO "+got.Helo+", want "+ownHelo)
		}
	}
	p.honest.Mail[0].Forget()
	return found
}

// noServer is an address without a listener.
const noServer = "-DSTS_TLSMAP_SERVER=inet:127.0.0.1:8463"

// silence has no server answer.
func (p *probe) silence(t *testing.T, v *world) []string {
	m := v.exim.Submit(t, p.domains[:1], foreground, noServer)[0]
	found := differences(m, m.Outcome(t), deferred("MTA-STS: probe.test: "+noAnswer), p.hosts...)
	if got := v.rcpt(t, "someone@probe.test", "someone@local.test", noServer); !strings.HasPrefix(got, "250") {
		found = append(found, "mail from a protected domain: "+got)
	}
	return found
}

// nonsense sends truncated replies.
func (p *probe) nonsense(t *testing.T, v *world) (found []string) {
	for _, text := range []string{"9:NOTFOUND ", "3:OK ,"} {
		p.reply.Store(&impostorsReply{text: text})
		before := p.lied.Load()
		m := v.exim.Submit(t, p.domains[:1], foreground, askOther)[0]
		found = append(found, differences(m, m.Outcome(t), deferred(""), p.hosts...)...)
		if p.lied.Load() != before+1 { // mail may be deferred for other reasons
			found = append(found, fmt.Sprintf("Exim did not get the reply %q", text))
		}
	}
	return found
}

// patience has the daemon take longer than Exim's default of 5 s.
func (p *probe) patience(t *testing.T, v *world) []string {
	p.reply.Store(&impostorsReply{"17:OK mx1.probe.test,", 6 * time.Second})
	m := v.exim.Submit(t, p.domains[:1], background, askOther)[0]
	return differences(m, m.Outcome(t), p.fates[0], p.hosts...)
}

// shared has one host that fails for one domain and serves another.
func (p *probe) shared(t *testing.T, v *world) []string {
	m, n := v.exim.Queue(t, p.bad.Name), v.exim.Queue(t, p.plainAtShared.Name)
	v.exim.Run(t, "-q")
	found := differences(m, m.Outcome(t), deferred(""), p.bad.Mail...)
	return append(found, differences(n, n.Outcome(t), fate{status: "sent", host: p.bad.Mail[0], tls: "Trusted"}, p.bad.Mail...)...)
}
