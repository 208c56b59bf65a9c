package explain

import (
	"errors"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// A Row is a label and what stands behind it, fit to be shown.
type Row struct{ Label, Value string }

// A HeldReport says what follows for a domain from what is held of it alone:
// nothing was asked of anybody.
type HeldReport struct {
	Domain string
	Rows   []Row
	Policy []string // the text's lines
	Maps   []Reply  // what the maps reply now; none: the next lookup asks the network first
	Next   string   // what to do to learn more, or to change it
}

// maxPolicyLines is how many lines of a policy's text are shown.
const maxPolicyLines = 200

// errNotAsked stands where a reply would need more than what is held.
var errNotAsked = errors.New("nothing was asked")

// FromHeld explains a domain from what is held of it.
func FromHeld(h *control.Held, table *tlsmap.Table, now time.Time) *HeldReport {
	out := &HeldReport{Domain: printable(h.Domain), Next: "This page asks nobody. Each step, live: sts-tlsmap -explain " + printable(h.Domain)}
	r := &Report{
		Domain: h.Domain, now: now, Cache: &Cache{From: Daemon, Held: h},
		MX: &MX{}, DANE: &DANE{hop: dane.NextHop{Host: h.Domain}.String(), finding: dane.Finding{Why: errNotAsked.Error()}}, mxErr: errNotAsked,
	}
	t := new(text)
	heldWords(t, h, now)
	if e := h.Entry; e != nil && e.Policy != "" {
		for line := range strings.Lines(e.Policy) {
			if len(out.Policy) == maxPolicyLines {
				out.Policy = append(out.Policy, "...")
				break
			}
			out.Policy = append(out.Policy, printable(strings.TrimRight(line, "\r\n")))
		}
		if p, err := policy.Parse([]byte(e.Policy)); err == nil {
			policyWords(t, p)
		}
	}
	out.Rows = t.rows
	if _, live := r.heldPolicy(); !live && r.negative() == nil && h.Damaged == "" && !h.Exempt {
		return out // the next lookup begins with a discovery
	}
	r.decide(Sources{Table: table, Exempt: func(string) []control.ExemptEntry { return nil }})
	for _, m := range r.Maps {
		if strings.HasSuffix(m.Why, errNotAsked.Error()) {
			why := "the policy is applied; how depends on MX and TLSA records, which are not asked for here"
			if m.Would == "" {
				m.Reply = ""
			} else {
				why = "a rehearsal; otherwise " + why
			}
			m.Why, m.Would = why, ""
		}
		m.Reply, m.Why, m.Would = printable(strings.TrimSpace(m.Reply)), printable(m.Why), printable(m.Would)
		out.Maps = append(out.Maps, m)
	}
	return out
}

// Printable makes a stranger's text safe to be shown: what is not a printable
// character of Unicode, line ends and direction marks included, is an escape,
// and what is long is cut.
func Printable(s string) string { return printable(s) }

// Span writes a length of time in its two largest units.
func Span(d time.Duration) string { return span(d) }

// When writes a time relative to now: "3h12m ago", "in 6d", or "never".
func When(t, now time.Time) string { return when(t, now) }
