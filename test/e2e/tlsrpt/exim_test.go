//go:build e2e

package tlsrpt

import (
	"bufio"
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// Exim 4.96, 4.98 and 4.100, which do DANE themselves.
func TestEximBookworm(t *testing.T) { withExim(t, "exim-bookworm") }
func TestEximTrixie(t *testing.T)   { withExim(t, "exim-trixie") }
func TestEximForky(t *testing.T)    { withExim(t, "exim-forky") }

const (
	eximNet    = "198.18.0.0/16" // Exim does not deliver to 127.0.0.0/8
	eximSocket = "exim-tlsrpt.sock"
	unasked    = "unasked.test" // Exim asks for no policy of it
	mixedName  = "mixed.test"
)

// An eximRow says how Exim differs from Postfix in a row.
type eximRow struct {
	status string
	want   func(d *testlab.Domain) []report.Result
}

// eximDiffers has the rows by domain.
var eximDiffers = map[string]eximRow{
	"thousand.test": {want: func(d *testlab.Domain) []report.Result {
		return []report.Result{sts(d, 1, 0, patterns(1000, "*.thousand.test")...)}
	}},
	"refused.test":       {deferred, stsFailed(tlsrpt.StartTLSNotSupported, "starttls-refused")},
	"other-ca.test":      {deferred, stsFailed(tlsrpt.CertificateNotTrusted, "")},
	"no-chain.test":      {deferred, stsFailed(tlsrpt.CertificateNotTrusted, "")},
	"old.test":           {"sent", stsSucceeded},
	"testing.test":       {"sent", testingFailed(tlsrpt.CertificateNotTrusted, "self-signed_certificate")},
	"testing-good.test":  {"sent", func(d *testlab.Domain) []report.Result { return []report.Result{inTesting(d, 1, 0)} }},
	"testing-clear.test": {"sent", testingFailed(tlsrpt.StartTLSNotSupported, "")},
	"plain-clear.test":   {"sent", noPolicyFailed(tlsrpt.StartTLSNotSupported, "")},
	"silent.test":        {"sent", stsSucceeded},
}

// eximRows are further rows, in which Postfix tells of nothing.
var eximRows = []row{{
	what: "no policy and an aborted handshake", domain: "plain-hang-up.test", with: testlab.With{NoPolicy: true, MailFault: testlab.STARTTLSHangUp},
	want: noPolicyFailed(tlsrpt.ValidationFailure, "tls-handshake-failure"),
}, {
	what: "no policy and 454 to STARTTLS: nothing", domain: "plain-refused.test", with: testlab.With{NoPolicy: true, MailFault: testlab.STARTTLSRefused},
}, {
	what: "a testing policy and a host that it does not list", domain: "testing-unlisted.test", with: testlab.With{Mode: "testing", MX: []string{"mx.other.test"}},
	want: func(d *testlab.Domain) []report.Result {
		return underTesting(with(sts(d, 0, 1, "mx.other.test"), detail(d.Mail[0], tlsrpt.ValidationFailure, tlsrpt.ReasonMXMismatch)))
	},
}, {
	what: "the first MX host fails, the second one does not answer", domain: "two-down.test", hosts: []string{"mx1.two-down.test", "mx2.two-down.test"},
	bend: func(d *testlab.Domain) error {
		if err := d.Mail[0].Present(testlab.CertExpired); err != nil {
			return err
		}
		return d.Mail[1].Down()
	},
	status: deferred, want: stsFailed(tlsrpt.CertificateExpired, ""),
}, {
	what: "names in a certificate that Exim could take for its own language", domain: "evil-name.test",
	bend: func(d *testlab.Domain) error {
		return d.Mail[0].PresentFor(testlab.CertGood, "}}${run{/usr/bin/touch /run/pwned}}{", `"\n'$domain`)
	},
	status: deferred, want: stsFailed(tlsrpt.CertificateHostMismatch, ""),
}}

// underTesting is a result under the same policy in testing.
func underTesting(r report.Result) []report.Result {
	r.Policy.Strings = slices.Clone(r.Policy.Strings)
	r.Policy.Strings[1] = "mode: testing"
	return []report.Result{r}
}

func testingFailed(kind tlsrpt.ResultType, reason string) func(*testlab.Domain) []report.Result {
	return func(d *testlab.Domain) []report.Result { return underTesting(stsFailed(kind, reason)(d)[0]) }
}

func noPolicyFailed(kind tlsrpt.ResultType, reason string) func(*testlab.Domain) []report.Result {
	return func(d *testlab.Domain) []report.Result {
		r := with(noPolicySucceeded(d)[0], detail(d.Mail[0], kind, reason))
		r.Summary = report.Summary{Failed: 1}
		return []report.Result{r}
	}
}

// rowsOfExim are all rows with what Exim tells. Postfix's smart host and its command for
// U-labels are left out, and so is TLS-Required, which Exim does not know.
func rowsOfExim() (all []row) {
	for _, r := range slices.Concat(rows, daneRows, eximRows) {
		if r.to != "" && r.domain != "folded.test" || r.header != "" {
			continue
		}
		if x, ok := eximDiffers[r.domain]; ok {
			r.want, r.status = x.want, x.status
		}
		if want := r.want; want != nil {
			r.want = func(d *testlab.Domain) []report.Result { return asExim(want(d)) }
		}
		all = append(all, r)
	}
	return all
}

// asExim has no TLSA records, and on this machine Exim's address is the one it connects to.
func asExim(results []report.Result) []report.Result {
	for i := range results {
		if results[i].Policy.Type == tlsrpt.TypeTLSA {
			results[i].Policy.Strings = []string{}
		}
		for j := range results[i].Details {
			if d := &results[i].Details[j]; d.SendingIP.IsValid() {
				d.SendingIP = d.ReceivingIP
			}
		}
	}
	return results
}

func withExim(t *testing.T, root string) {
	stage.AddNetwork(t, eximNet)
	setQueueLength(t, queueLength)
	w := &world{net: eximNet, dane: true, day: tlsrpt.DayOf(time.Now())}
	all := rowsOfExim()
	domains, _ := w.enterLab(t, all)
	if err := os.Mkdir(stage.Path(reports), 0o700); err != nil {
		t.Fatal(err)
	}
	w.daemon = stage.NewDaemon(t, testlab.DaemonConfig{
		CA: stage.WriteCA(t, w.lab),
		Tables: fmt.Sprintf("[tlsrpt]\norganization = %q\ncontact = %q\nsender = %q\npath = %q\nexim_socket = %q\n",
			organization, contact, contact, stage.Path(reports+"/reports.db"), "unix:"+stage.Path(eximSocket)),
	})
	e := stage.StartExim(t, root, stage.EximOptions{Shipped: os.DirFS("../../../packaging/exim"), Files: map[string]string{
		roots: string(w.lab.CA.PEM()),
		"/etc/exim4/conf.d/main/11_local": "STS_TLSMAP_DOMAINS == ! +local_domains : ! +relay_to_domains : ! " + unasked + "\n" +
			"STS_TLSMAP_REPORT_SOCKET = " + stage.Path(eximSocket) + "\nSTS_TLSMAP_REPORT_SENDER = " + contact + "\n",
	}})
	w.mta = e
	w.daemon.In(t, e.Root())
	w.startForExim(t)
	w.playExim(t, e, all, domains)
	for _, s := range []struct {
		what string
		tell func(*testing.T, *world, *stage.Exim)
	}{
		{"three messages on one connection are one session", oneConnection},
		{"mail to two domains at once goes out", twoDomains},
		{"an EHLO reply that Exim could take for its own language", evilEHLO},
		{"mail does not wait for a daemon that is down or hangs", eximGoesOn},
		{"the recipe says what is so already", eximRecipe},
	} {
		t.Run(s.what, func(t *testing.T) { s.tell(t, w, e) })
	}
	if _, err := os.Stat(stage.Path("pwned")); err == nil {
		t.Error("Exim has run a command of a stranger")
	}
	if panics, _ := os.ReadFile(e.Root().Path("/var/log/exim4/paniclog")); strings.Contains(string(panics), "event_action") {
		t.Errorf("Exim cannot expand event_action: %s", panics)
	}
}

func (w *world) startForExim(t *testing.T) {
	t.Helper()
	w.daemon.Start(t)
	await(t, "the daemon listens for Exim", func() bool {
		c, err := net.Dial("unix", stage.Path(eximSocket))
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
}

// playExim sends the messages of the rows and compares the reports.
func (w *world) playExim(t *testing.T, e *stage.Exim, rows []row, domains []*testlab.Domain) {
	for _, r := range rows {
		m := e.Send(t, cmp.Or(r.to, r.domain))
		if o := m.Outcome(t); o.Status != cmp.Or(r.status, "sent") {
			t.Errorf("%s: %s\n%s", r.what, o, o.Log)
		}
	}
	w.flush(t, "last.test")
	for i, r := range rows {
		t.Run(r.what, func(t *testing.T) {
			if r.want != nil { // a missing STARTTLS counts two seconds later, when nothing has taken it back
				n := sessionsOf(r.want(domains[i]))
				await(t, "all is counted", func() bool { return sessionsOf(w.report(t, domains[i].Name)) >= n })
			}
			w.compare(t, r, domains[i])
		})
	}
}

func sessionsOf(results []report.Result) (n uint64) {
	for _, r := range results {
		n += r.Summary.Successful + r.Summary.Failed
	}
	return n
}

func oneConnection(t *testing.T, w *world, e *stage.Exim) {
	d := w.domain(t, row{domain: "several.test", with: noPolicy})
	var messages []*stage.Message
	for range 3 {
		messages = append(messages, e.Queue(t, d.Name))
	}
	e.Run(t, "-qq")
	for _, m := range messages {
		if o := m.Outcome(t); o.Status != "sent" {
			t.Errorf("%s", o)
		}
	}
	if n := d.Mail[0].Connections(); n != 1 {
		t.Fatalf("%d connections", n)
	}
	w.flush(t, "after-several.test")
	w.expectExim(t, d, noPolicySucceeded(d))
}

func (w *world) expectExim(t *testing.T, d *testlab.Domain, want []report.Result) {
	t.Helper()
	w.midnight(t)
	want = asExim(want)
	var got []report.Result
	await(t, "the sessions are counted", func() bool { got = w.report(t, d.Name); return sessionsOf(got) >= sessionsOf(want) })
	if asText(got) != asText(want) {
		t.Errorf("%s, the report of %s:\n%swant:\n%s", w.mta.Name(), d.Name, asText(got), asText(want))
	}
}

func twoDomains(t *testing.T, w *world, e *stage.Exim) {
	host := w.lab.MailHost("mx."+mixedName, "")
	one := w.domain(t, row{domain: "one." + mixedName, with: testlab.With{NoPolicy: true, Mail: []*testlab.MailHost{host}}})
	two := w.domain(t, row{domain: "two." + mixedName, with: testlab.With{NoPolicy: true, Mail: []*testlab.MailHost{host}}})
	for _, m := range e.Submit(t, []string{one.Name, two.Name}, "-odf") {
		if o := m.Outcome(t); o.Status != "sent" {
			t.Errorf("%s", o)
		}
	}
	w.flush(t, "after-mixed.test")
	if a, b := w.report(t, one.Name), w.report(t, two.Name); len(a)+len(b) != 0 {
		t.Logf("sessions of several domains are told now: %v, %v", a, b)
	}
}

// evilEHLO has a host whose EHLO reply is no host name, but Exim's language, of 3 KB.
func evilEHLO(t *testing.T, w *world, e *stage.Exim) {
	const address = "198.18.200.1"
	l, err := net.Listen("tcp", address+":25")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprint(c, "220 mx.evil.test\r\n")
				for lines := bufio.NewScanner(c); lines.Scan(); {
					switch verb := strings.ToUpper(lines.Text()); {
					case strings.HasPrefix(verb, "EHLO"):
						fmt.Fprintf(c, "250-}}${run{/usr/bin/touch /run/pwned}}{\"'\\n$domain\x01\xff\r\n250-%s\r\n250 HELP\r\n", strings.Repeat("${run{/usr/bin/touch /run/pwned}}", 90))
					case verb == "DATA":
						fmt.Fprint(c, "354 go on\r\n")
					case verb == ".", !strings.Contains(verb, ":"), strings.HasPrefix(verb, "MAIL"), strings.HasPrefix(verb, "RCPT"):
						if verb != "" && verb != "HELLO." {
							fmt.Fprint(c, "250 ok\r\n")
						}
					}
				}
			}()
		}
	}()
	d := w.domain(t, row{domain: "evil.test", with: testlab.With{NoPolicy: true, NoMail: true}})
	w.lab.Set("evil.test. 300 IN MX 10 mx.evil.test.", "mx.evil.test. 300 IN A "+address)
	o := e.Send(t, d.Name).Outcome(t)
	t.Log(o)
	w.flush(t, "after-evil.test")
	await(t, "the session is counted", func() bool { return w.report(t, d.Name) != nil })
	got := w.report(t, d.Name)
	if f := got[0].Details; len(f) != 1 || f[0].Result != tlsrpt.StartTLSNotSupported || f[0].HELO != "" || f[0].MXHost != "mx.evil.test" {
		t.Errorf("the report of a hostile EHLO: %s", asText(got))
	}
}

// eximGoesOn sends mail, of which the daemon is not asked, while it is down and while it
// hangs. What is told to a daemon that hangs waits in its socket.
func eximGoesOn(t *testing.T, w *world, e *stage.Exim) {
	d := w.domain(t, row{domain: unasked, with: noPolicy})
	send := func(how string) {
		begin := time.Now()
		o := e.Send(t, d.Name).Outcome(t)
		t.Logf("%s: %s after %v", how, o.Status, time.Since(begin).Round(10*time.Millisecond))
		if o.Status != "sent" || o.TLS != "Verified" {
			t.Errorf("%s: %s\n%s", how, o, o.Log)
		}
	}
	send("the daemon runs")
	w.daemon.Pause(t)
	send("the daemon hangs")
	w.daemon.Resume(t)
	w.flush(t, "after-hang.test")
	w.daemon.Kill(t)
	send("the daemon is down")
	w.startForExim(t)
	send("the daemon runs again")
	w.flush(t, "after-down.test")
	want := noPolicySucceeded(d)
	want[0].Summary.Successful = 3
	w.expectExim(t, d, want)
}

func eximRecipe(t *testing.T, w *world, e *stage.Exim) {
	text, code := w.daemon.Run(t, "-recipe", "exim")
	for _, want := range []string{"STS_TLSMAP_REPORT_SOCKET = " + stage.Path(eximSocket) + "\n", "STS_TLSMAP_REPORT_SENDER = " + contact + "\n",
		"30_exim4-config_remote_smtp-sts-tlsmap:\n\n# already so\n"} {
		if code != 0 || !strings.Contains(text, want) {
			t.Errorf("-recipe exim, exit code %d, has no %q:\n%s", code, want, text)
		}
	}
	if strings.Contains(text, "does not tell the daemon of its TLS sessions") {
		t.Errorf("-recipe exim warns:\n%s", text)
	}
}

// inWords are results as the table in docs/tls-reports.md has them.
func inWords(results []report.Result) string {
	var all []string
	for _, r := range results {
		for _, d := range r.Details {
			s := string(r.Policy.Type) + ", " + string(d.Result)
			if d.Reason != "" {
				s += ", `" + d.Reason + "`"
			}
			all = append(all, s)
		}
		if r.Summary.Successful > 0 {
			all = append(all, string(r.Policy.Type)+", success")
		}
	}
	return cmp.Or(strings.Join(all, "; "), "nothing")
}

// onThePage are the rows of the page's table by domain.
var onThePage = map[string]string{
	"honest.test":             "success, enforced policy",
	"match.signed.example":    "success, DANE",
	"mismatch.signed.example": "no TLSA record matches",
	"clear.signed.example":    "DANE, no STARTTLS",
	"broken.signed.example":   "a TLSA lookup that fails",
	"plain-self-signed.test":  "no policy, any certificate",
	"clear.test":              "no STARTTLS, enforced policy",
	"refused.test":            "454 to STARTTLS, enforced policy",
	"wrong-name.test":         "certificate for another name",
	"expired.test":            "expired certificate",
	"early.test":              "certificate not valid yet",
	"self-signed.test":        "self-signed certificate",
	"no-chain.test":           "unknown authority",
	"other-ca.test":           "unknown authority, whose root is sent",
	"hang-up.test":            "aborted handshake",
	"two.test":                "the first host fails, the second succeeds",
	"old.test":                "TLS 1.1 at most",
	"thousand.test":           "a policy with 1,000 patterns",
	"testing.test":            "testing policy, self-signed certificate",
	"testing-clear.test":      "testing policy, no STARTTLS",
	"testing-good.test":       "testing policy, success",
	"plain-clear.test":        "no policy, no STARTTLS",
	"plain-hang-up.test":      "no policy, aborted handshake",
	"plain-refused.test":      "no policy, 454 to STARTTLS",
	"silent.test":             "a domain without a TLSRPT record",
}

// What the page says of both MTAs is what the rows want, to which the tests hold the MTAs.
func TestTheTableOfBothMTAsIsWhatTheRowsWant(t *testing.T) {
	page, err := os.ReadFile(filepath.FromSlash("../../../docs/tls-reports.md"))
	if err != nil {
		t.Fatal(err)
	}
	said := map[string][]string{} // by domain
	for domain, what := range onThePage {
		row := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(what) + ` \| ([^|]+) \| ([^|]+) \| ([^|]*)\|$`).FindStringSubmatch(string(page))
		if row == nil {
			t.Fatalf("the page has no row %q", what)
		}
		said[domain] = row[1:]
	}
	lab := testlab.New(t)
	w := &world{lab: lab}
	seen := 0
	for _, r := range slices.Concat(rows, daneRows, eximRows) {
		cells := said[r.domain]
		if cells == nil {
			if _, differs := eximDiffers[r.domain]; differs {
				t.Errorf("the page does not say how Exim differs: %s", r.what)
			}
			continue
		}
		seen++
		d := w.domain(t, r)
		postfix, exim := "nothing", "nothing"
		if r.want != nil {
			postfix = inWords(r.want(d))
			exim = postfix
		}
		if slices.ContainsFunc(eximRows, func(x row) bool { return x.domain == r.domain }) {
			postfix = "nothing"
		}
		if x, ok := eximDiffers[r.domain]; ok {
			exim = inWords(x.want(d))
		}
		if exim == postfix {
			exim = "the same"
		}
		if cells[0] != postfix || cells[1] != exim {
			t.Errorf("%s: the page says %q and %q, the rows want %q and %q", r.what, cells[0], cells[1], postfix, exim)
		}
	}
	if seen == 0 || seen != len(said) {
		t.Errorf("%d rows of the page are compared, of %d", seen, len(said))
	}
}
