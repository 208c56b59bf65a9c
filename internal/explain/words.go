package explain

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// WriteJSON writes the report as one line of JSON.
func (r *Report) WriteJSON(w io.Writer) error { return json.NewEncoder(w).Encode(r) }

// WriteText writes the report in words.
func (r *Report) WriteText(w io.Writer) error {
	t := &text{w: bufio.NewWriter(w)}
	if r.Domain == "" {
		t.head("%s: %s", printable(r.Key), r.NoKey)
	} else {
		t.head("%s", r.Domain)
		r.recordWords(t)
		r.fetchWords(t)
		r.mxWords(t)
		r.daneWords(t)
		r.cacheWords(t)
	}
	r.mapWords(t)
	if len(r.Stale) > 0 {
		t.section("Not in force")
		for _, s := range r.Stale {
			t.line("%s", s)
		}
	}
	t.section("Next")
	t.line("%s", r.Next)
	if hint := r.cacheHint(); hint != "" {
		t.line("About the daemon: %s.", printable(hint))
	}
	return t.w.Flush()
}

// text writes sections of labelled lines, or gathers the lines as rows.
type text struct {
	w    *bufio.Writer
	rows []Row
}

func (t *text) head(format string, args ...any) { fmt.Fprintf(t.w, format+"\n", args...) }

func (t *text) section(name string) { fmt.Fprintf(t.w, "\n%s\n", name) }

func (t *text) line(format string, args ...any) { fmt.Fprintf(t.w, "  "+format+"\n", args...) }

// row writes a label and a value; the value may come from the network.
func (t *text) row(label, value string) {
	if t.w == nil {
		t.rows = append(t.rows, Row{Label: label, Value: printable(value)})
		return
	}
	fmt.Fprintf(t.w, "  %-12s %s\n", label, printable(value))
}

// block writes a text of several lines.
func (t *text) block(label, value string) {
	for i, l := range strings.Split(strings.TrimRight(value, "\r\n"), "\n") {
		if i == 1 {
			label = ""
		}
		t.row(label, strings.TrimSuffix(l, "\r"))
	}
}

func (r *Report) recordWords(t *text) {
	rec := r.Record
	t.section("TXT record at " + rec.Name)
	t.row("DNS says", rec.Answer+authenticated(rec.Authenticated))
	if len(rec.CNAMEs) > 0 {
		t.row("through", "CNAME at "+strings.Join(rec.CNAMEs, ", "))
	}
	for _, s := range rec.Texts {
		t.row("text", s)
	}
	switch rec.Result {
	case policy.ResultOK:
		t.row("id", rec.ID)
	case policy.ResultNoRecord:
		t.row("so", "the domain publishes no MTA-STS policy: "+rec.Err)
	default:
		t.row("error", rec.Err)
	}
}

func authenticated(ad bool) string {
	if ad {
		return ", authenticated by DNSSEC"
	}
	return ""
}

func (r *Report) fetchWords(t *text) {
	f := r.Fetch
	if f == nil {
		return // without a record there is no policy to fetch (RFC 8461, 3.3)
	}
	t.section("Policy at " + f.URL)
	if f.fetched == nil {
		t.row("error", f.Err)
		t.row("result", string(f.Result)+" (RFC 8460, 4.3)")
		return
	}
	t.row("served by", fmt.Sprintf("%s in %d ms, status 200", f.Address, f.Millis))
	t.row("certificate", fmt.Sprintf("valid until %s (%s), from %s", clock(f.NotAfter), when(f.NotAfter, r.now), f.Issuer))
	t.block("text", f.Text)
	policyWords(t, f.fetched.Policy)
}

// policyWords says what a policy demands.
func policyWords(t *text, p *policy.Policy) {
	switch p.Mode {
	case policy.ModeEnforce:
		t.row("demands", "mail goes over verified TLS to a listed host, or not at all (enforce)")
	case policy.ModeTesting:
		t.row("demands", "failures are reported, mail is delivered anyway (testing)")
	default:
		t.row("demands", "nothing: the domain has given up MTA-STS (none)")
	}
	t.row("lasts", span(p.MaxAge)+" from each fetch")
	if len(p.MX) > 0 {
		t.row("lists", joinSome(p.MX, maxPatterns))
	}
}

func (r *Report) mxWords(t *text) {
	m := r.MX
	t.section("MX hosts of " + r.Domain)
	t.row("DNS says", m.Answer+authenticated(m.Authenticated))
	if m.Note != "" {
		t.row("note", m.Note)
	}
	for _, h := range m.Hosts {
		listed := ""
		if h.Listed != nil && *h.Listed {
			listed = ", listed by the policy"
		} else if h.Unusable {
			listed = ", listed by the policy, but NOT usable: no MTA takes such a name"
		} else if h.Listed != nil {
			listed = ", NOT listed by the policy"
		}
		t.row(fmt.Sprint(h.Preference), h.Name+listed)
	}
	if m.More > 0 {
		t.row("", fmt.Sprintf("and %d more", m.More))
	}
}

func (r *Report) cacheWords(t *text) {
	c := r.Cache
	switch {
	case c.From == Daemon && c.notAsked != nil:
		t.section("Cache (the daemon could not be asked)")
	case c.From == Daemon:
		t.section("Cache, as the daemon has it")
	case c.From == File:
		t.section("Cache, from the file (" + c.absence() + ")")
	default:
		t.section("Cache")
	}
	if c.notAsked != nil && c.Err != c.notAsked.Error() && !errors.Is(c.notAsked, control.ErrNoDaemon) {
		t.row("daemon", c.notAsked.Error())
	}
	switch {
	case c.Err != "":
		t.row("error", c.Err)
	case c.Held == nil:
		t.row("holds", "nothing for this domain")
	default:
		heldWords(t, c.Held, r.now)
	}
}

// absence says in short why the file was read, and not the daemon asked.
func (c *Cache) absence() string {
	for _, err := range []error{control.ErrNoAnswer, control.ErrBusy} {
		if errors.Is(c.notAsked, err) {
			return err.Error()
		}
	}
	return control.ErrNoDaemon.Error()
}

// heldWords says what is held, but for the policy's text.
func heldWords(t *text, h *control.Held, now time.Time) {
	if h.Damaged != "" {
		t.row("damaged", h.Damaged)
	}
	if e := h.Entry; e != nil {
		t.row("mode", e.Mode)
		t.row("id", e.ID)
		if e.PendingID != "" {
			t.row("new id", e.PendingID+", with the old text so far: looked at again soon (RFC 8461, 8.1)")
		}
		times := []struct {
			label string
			at    time.Time
		}{{"fetched", e.Fetched}, {"expires", e.Expires}, {"checked", e.Checked}, {"used", e.Used}, {"due", e.Due}}
		for _, x := range times {
			if x.at.IsZero() {
				t.row(x.label, "never")
				continue
			}
			t.row(x.label, clock(x.at)+" ("+when(x.at, now)+")")
		}
		if e.Failures > 0 {
			t.row("failures", fmt.Sprintf("%d in a row, the last one %s", e.Failures, when(e.FailedAt, now)))
		}
		if e.LastError != "" {
			t.row("last error", e.LastError)
		}
	}
	if n := h.Negative; n != nil {
		t.row("not found", fmt.Sprintf("%s; not tried again before %s (%s)", n.Result, clock(n.Until), when(n.Until, now)))
		if n.Err != "" {
			t.row("because", n.Err)
		}
	}
	for _, e := range h.ExemptBy {
		how := "in [exempt]"
		if !e.Until.IsZero() {
			how = "until " + clock(e.Until) + " (" + when(e.Until, now) + ")"
		}
		t.row("exempt", how+byEntry(e, h.Domain)+": every map replies NOTFOUND")
	}
	switch {
	case len(h.ExemptBy) > 0: // said above
	case h.Exempt && !h.ExemptUntil.IsZero():
		t.row("exempt", "until "+clock(h.ExemptUntil)+" ("+when(h.ExemptUntil, now)+"): every map replies NOTFOUND")
	case h.Exempt:
		t.row("exempt", "the domain is exempt: every map replies NOTFOUND")
	}
	for _, x := range h.Rehearsed {
		lookups := "1 lookup"
		if x.Count != 1 {
			lookups = fmt.Sprintf("%d lookups", x.Count)
		}
		t.row("rehearsed", fmt.Sprintf("map %s would have replied to %s, the last one %s: %s", x.Map, lookups, when(x.Last, now), x.Reply))
	}
}

func (r *Report) mapWords(t *text) {
	if r.Cache != nil && r.Cache.Err != "" {
		t.section("What the maps reply if the daemon holds nothing for this domain (that is not known)")
	} else {
		t.section("What the maps reply")
	}
	switch r.mapsOf {
	case Daemon:
		t.line("(the maps are those of the daemon)")
	case File:
		t.line("(the maps are those of the configuration file; a daemon has those that were there when it started)")
	}
	for _, m := range r.Maps {
		t.line("%s", m.Map)
		t.row("  reply", strings.TrimSpace(m.Reply))
		if m.Would != "" {
			t.row("  would be", m.Would)
		}
		t.row("  why", m.Why)
	}
}
