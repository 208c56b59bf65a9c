package explain

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// The layout of text: labels are columns 3 to 14, values begin in column 16, and
// sentences are broken before column 80.
const (
	valueIndent = 15
	lineWidth   = 79
)

// A printer writes sections of labelled lines.
type printer struct{ w *bufio.Writer }

func (p printer) section(format string, args ...any) { fmt.Fprintf(p.w, "\n"+format+"\n", args...) }

// line writes a sentence.
func (p printer) line(s string) {
	for _, l := range text.Wrap(s, lineWidth-2) {
		fmt.Fprintf(p.w, "  %s\n", l)
	}
}

// row writes a label and a sentence or a short value, which may come from the
// network. It writes nothing for an empty value.
func (p printer) row(label, value string) {
	if value == "" {
		return
	}
	for _, l := range text.Wrap(text.Printable(value), lineWidth-valueIndent) {
		fmt.Fprintf(p.w, "  %-12s %s\n", label, l)
		label = ""
	}
}

// verbatim writes a label and a text of one or several lines, which are not broken.
func (p printer) verbatim(label, value string) {
	for l := range strings.Lines(value) {
		fmt.Fprintf(p.w, "  %-12s %s\n", label, text.Printable(strings.TrimRight(l, "\r\n")))
		label = ""
	}
}

// WriteText writes the report in words.
func (r *Report) WriteText(w io.Writer) error {
	p := printer{bufio.NewWriter(w)}
	if r.Domain == "" {
		fmt.Fprintf(p.w, "%s: %s\n", text.Printable(r.Key), r.NoKey)
		p.line(r.Next)
	} else {
		fmt.Fprintln(p.w, r.Domain)
		p.line(r.Next)
		if r.Cache.askHint != "" {
			p.line("About the daemon: " + text.Printable(r.Cache.askHint) + ".")
		}
		r.recordWords(p)
		r.fetchWords(p)
		r.mxWords(p)
		r.daneWords(p)
		r.cacheWords(p)
	}
	r.mapWords(p)
	return p.w.Flush()
}

func (r *Report) recordWords(p printer) {
	rec := r.Record
	p.section("TXT record at %s", rec.Name)
	p.row("DNS says", rec.Answer+authenticated(rec.Authenticated))
	if len(rec.CNAMEs) > 0 {
		p.row("through", "CNAME at "+strings.Join(rec.CNAMEs, ", "))
	}
	for _, s := range rec.Texts {
		p.row("text", s)
	}
	switch rec.Result {
	case policy.ResultOK:
		p.row("id", rec.ID)
	case policy.ResultNoRecord:
		p.row("so", "the domain publishes no MTA-STS policy: "+rec.Err)
	default:
		p.row("error", rec.Err)
	}
}

func authenticated(ad bool) string {
	if ad {
		return ", authenticated by DNSSEC"
	}
	return ""
}

func (r *Report) fetchWords(p printer) {
	f := r.Fetch
	if f == nil {
		return
	}
	p.section("Policy at %s", f.URL)
	if f.policy == nil {
		p.row("error", f.Err)
		p.row("result", string(f.Result)+" (RFC 8460, 4.3)")
		return
	}
	p.row("served by", fmt.Sprintf("%s in %d ms, status 200", f.Address, f.Millis))
	p.row("certificate", fmt.Sprintf("valid until %s, from %s", text.Moment(f.NotAfter, r.now), f.Issuer))
	p.verbatim("text", f.Text)
	policyWords(p, f.policy)
}

// policyWords says what a policy demands.
func policyWords(p printer, pol *policy.Policy) {
	p.row("demands", map[policy.Mode]string{
		policy.ModeEnforce: "mail goes over verified TLS to a listed host, or waits (enforce)",
		policy.ModeTesting: "failures are reported, mail is delivered anyway (testing)",
		policy.ModeNone:    "nothing: the domain has given up MTA-STS (none)",
	}[pol.Mode])
	if left := tlsmap.LeftOut(pol); len(left) > 0 {
		p.row("left out", "no MTA takes such a name: "+strings.Join(left, ", "))
	}
	p.row("lasts", text.Span(pol.MaxAge)+" from each fetch")
}

func (r *Report) mxWords(p printer) {
	m := r.MX
	p.section("MX hosts of %s", r.Domain)
	p.row("DNS says", m.Answer+authenticated(m.Authenticated))
	p.row("note", m.Note)
	for _, h := range m.Hosts {
		words := h.Name
		if h.Listed != nil {
			words += map[bool]string{true: ", listed by the policy", false: ", NOT listed by the policy"}[*h.Listed]
		}
		p.row(fmt.Sprint(h.Preference), words)
	}
}

func (r *Report) daneWords(p printer) {
	d := r.DANE
	p.section("DANE of %s (RFC 7672)", r.Domain)
	p.row("resolver", d.Resolver)
	for _, h := range d.Hosts {
		words := h.Name + ": " + h.State
		if h.Failed != "" {
			words += ": dig +dnssec " + h.Failed
		}
		p.row(fmt.Sprint(h.Preference), words)
	}
	if d.Beyond > 0 {
		p.row("", fmt.Sprintf("and %d more hosts", d.Beyond))
	}
	p.row("so", because(d.finding))
	if h := d.Held; h != nil {
		p.row("held", fmt.Sprintf("for another %s, by the daemon, which answers from it: %s", text.Span(h.Until.Sub(r.now)), because(d.counts)))
	}
	switch {
	case !d.asked:
		p.row("for mail", "not looked up: without an enforced policy, or a map with DANE, the MTA does DANE itself")
	case d.counts.State == dane.Usable:
		p.row("for mail", "maps with DANE reply dane-only: hosts without usable TLSA records are skipped, and whether the policy lists a host does not count")
	}
}

// stateWords says what a state means.
var stateWords = map[dane.State]string{
	dane.SomeFailed:      "lookups fail at some hosts, the others are without DANE",
	dane.AddressesFailed: "lookups of addresses fail at some hosts, the others are without DANE",
	dane.Undecided:       "undecided",
	dane.Usable:          "DANE protects the domain",
	dane.LookupFailed:    "a lookup fails, and only the MTA can tell",
	dane.Absent:          "DANE does not protect the domain",
	dane.UnsignedMX:      "DANE does not protect the domain",
	dane.NoMail:          "no mail",
	dane.NotValidating:   "no DANE",
}

func because(f dane.Finding) string {
	return strings.TrimSuffix(stateWords[f.State]+": "+f.Why, ": ")
}

func (r *Report) cacheWords(p printer) {
	c := r.Cache
	switch {
	case c.From == File:
		p.section("Cache, from the file")
	case c.asked():
		p.section("Cache, as the daemon has it")
	default:
		p.section("Cache")
	}
	if c.notAsked != nil && !errors.Is(c.err, c.notAsked) {
		p.row("daemon", c.notAsked.Error())
	}
	switch {
	case c.Err != "":
		p.row("error", c.Err)
	case c.Held == nil:
		p.row("holds", "nothing for this domain")
	default:
		heldWords(p, c.Held, r.now)
	}
}

func (r *Report) mapWords(p printer) {
	title := cmp.Or(r.mapsOf, "What the maps reply")
	if r.Cache != nil && r.Cache.Err != "" && r.Cache.notStarted() == nil {
		title += " if nothing is held (not known)"
	}
	p.section("%s", title)
	for _, m := range r.Maps {
		p.line(m.Map)
		p.verbatim("  reply", strings.TrimSpace(m.Reply))
		p.verbatim("  would be", m.Would)
		p.row("  why", m.Why)
	}
}
