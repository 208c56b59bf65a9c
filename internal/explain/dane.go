package explain

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// NextHops looks at a next-hop through the DNS; *dane.Checker is one.
type NextHops interface {
	Probe(ctx context.Context) dane.Probe
	Look(ctx context.Context, n dane.NextHop, listed func(host string) bool) *dane.Report
	MX(ctx context.Context, domain string) (*dane.MXSet, error)
}

const (
	maxRecords  = 20 // of one answer that are shown
	maxTLSAData = 72 // bytes of a TLSA record that are shown
)

// DANE is what RFC 7672 says of the next-hop, and of the resolver on whose
// word all of it rests.
type DANE struct {
	Resolver  string     `json:"resolver"` // whether it validates
	Validates *bool      `json:"validates,omitempty"`
	Probe     []Lookup   `json:"probe,omitempty"`
	State     string     `json:"state"`
	Why       string     `json:"why"`
	MX        *Lookup    `json:"mx,omitempty"` // nil: in brackets
	Hosts     []DANEHost `json:"hosts,omitempty"`
	Beyond    int        `json:"hosts_not_looked_at,omitempty"`

	// Held is what the daemon holds, and answers from; nil: it asks anew.
	Held *control.DANE `json:"held,omitempty"`

	hop     string // as control.DANE has it
	finding dane.Finding
	asked   bool // a map asks for it under the policy that counts
}

// counts returns the finding that the maps answer from.
func (d *DANE) counts() dane.Finding {
	if d.Held != nil {
		return dane.Finding{State: d.Held.State, Why: d.Held.Why, Hosts: d.Held.Hosts, Until: d.Held.Until}
	}
	return d.finding
}

// take takes over what is held of the next-hop, if it still counts.
func (d *DANE) take(h *control.Held, now time.Time) {
	if h == nil || d.hop == "" {
		return
	}
	for i := range h.DANE {
		if x := &h.DANE[i]; x.NextHop == d.hop && now.Before(x.Until) {
			d.Held = x
		}
	}
}

// A DANEHost is a host of the next-hop.
type DANEHost struct {
	Name       string   `json:"name"`
	Preference uint16   `json:"preference"`
	State      string   `json:"state"`
	Lookups    []Lookup `json:"lookups,omitempty"` // in the order asked
}

// A Lookup is a question to the DNS, and the answer.
type Lookup struct {
	Name     string   `json:"name"`
	Type     string   `json:"type"`
	Answer   string   `json:"answer"`           // NOERROR, NXDOMAIN, or why there was none
	Security string   `json:"security"`         // of the four kinds of RFC 7672, 2.1.1
	CNAMEs   []string `json:"cnames,omitempty"` // passed through
	Records  []string `json:"records,omitempty"`
	More     int      `json:"more_records,omitempty"`
}

// lookAtDANE asks all about the next-hop's DANE, after the resolver was probed.
func lookAtDANE(ctx context.Context, hop mta.NextHop, listed func(string) bool, s Sources) *DANE {
	probe := s.NextHops.Probe(ctx)
	d := &DANE{Resolver: probe.Verdict.String()}
	if v := probe.Verdict; v != dane.NoVerdict {
		validates := v == dane.Validates
		d.Validates = &validates
	}
	for _, l := range probe.Lookups {
		d.Probe = append(d.Probe, lookupOf(l))
	}
	n, ok := tlsmap.DANENextHop(hop)
	if !ok {
		d.finding = dane.Finding{Why: tlsmap.UnknownPort}
	} else {
		d.hop = n.String()
		r := s.NextHops.Look(ctx, n, listed)
		d.finding = dane.Finding{State: r.State, Why: r.Why, Hosts: r.Rest}
		d.report(r)
	}
	d.State, d.Why = d.finding.State.String(), d.finding.Why
	return d
}

// report takes over what a check saw.
func (d *DANE) report(r *dane.Report) {
	if r.MX != nil {
		mx := lookupOf(r.MX)
		d.MX = &mx
	}
	d.Beyond = r.Beyond
	for _, h := range r.Hosts {
		if len(d.Hosts) == maxHosts {
			d.Beyond++
			continue
		}
		host := DANEHost{Name: h.Name, Preference: h.Preference, State: h.State.String()}
		for _, l := range h.Lookups() {
			host.Lookups = append(host.Lookups, lookupOf(l))
		}
		d.Hosts = append(d.Hosts, host)
	}
}

func lookupOf(l *dane.Lookup) Lookup {
	x := Lookup{
		Name: l.Name, Type: l.Type.String(), Answer: answerWord(l.Answer, l.Err), Security: l.Security.String(),
	}
	if l.Answer == nil {
		return x
	}
	x.CNAMEs = l.Answer.CNAMEs
	x.Records = l.Answer.Data()
	for i, t := range l.Answer.TLSA {
		x.Records[i] = tlsaWords(t)
	}
	if n := len(x.Records); n > maxRecords {
		x.Records, x.More = x.Records[:maxRecords], n-maxRecords
	}
	return x
}

func cut(s string) string {
	if len(s) > maxTLSAData {
		return s[:maxTLSAData] + "..."
	}
	return s
}

// tlsaWords writes a TLSA record, and whether it can be used.
func tlsaWords(t resolver.TLSA) string {
	use := "not usable for SMTP"
	if dane.UsableRecord(t) {
		use = "usable"
	}
	return fmt.Sprintf("%s (%s)", cut(t.String()), use)
}

func (r *Report) daneWords(t *text) {
	d := r.DANE
	t.section("DANE of " + r.Domain + " (RFC 7672)")
	t.row("resolver", d.Resolver)
	if d.MX != nil {
		t.row("MX records", d.MX.outcome())
	}
	for _, h := range d.Hosts {
		t.line("%s", printable(h.Name))
		for _, l := range h.Lookups {
			t.row("  "+l.Type, l.place(h.Name)+l.outcome())
			for _, rec := range l.Records {
				t.row("", rec)
			}
			if l.More > 0 {
				t.row("", fmt.Sprintf("and %d more", l.More))
			}
		}
		t.row("  so", h.State)
	}
	if d.Beyond > 0 {
		t.row("", fmt.Sprintf("and %d more hosts", d.Beyond))
	}
	t.row("so", because(d.finding.State, d.Why))
	if h := d.Held; h != nil {
		t.row("held", fmt.Sprintf("for another %s, by the daemon, which answers from it: %s", span(h.Until.Sub(r.now)), because(h.State, h.Why)))
	}
	switch {
	case !d.asked && r.policyState == tlsmap.PolicyEnforced:
		t.row("for mail", "not asked for: no map has DANE")
	case !d.asked:
		t.row("for mail", "not asked for: where no policy is enforced, the MTA does DANE by itself")
	case d.counts().State == dane.Usable:
		t.row("for mail", "maps with DANE reply dane-only: hosts without usable TLSA records are skipped, and whether the policy lists a host does not count")
	}
}

// stateWords says what a state means.
var stateWords = map[dane.State]string{
	dane.Undecided:       "undecided",
	dane.Usable:          "DANE protects the domain",
	dane.LookupFailed:    "a lookup fails, and only the MTA can tell",
	dane.SomeFailed:      "lookups fail at some hosts, the others are without DANE",
	dane.AddressesFailed: "lookups of addresses fail at some hosts, the others are without DANE",
	dane.Absent:          "DANE does not protect the domain",
	dane.UnsignedMX:      "DANE does not protect the domain",
	dane.NoMail:          "no mail",
	dane.NotValidating:   "no DANE",
}

func because(s dane.State, why string) string {
	if why == "" {
		return stateWords[s]
	}
	return stateWords[s] + ": " + why
}

// place says where a question was asked, if that is not plain.
func (l Lookup) place(host string) string {
	if l.Name == host {
		return ""
	}
	return "at " + l.Name + ": "
}

// outcome says what came of a question.
func (l Lookup) outcome() string {
	words := l.Answer
	if l.Security == dane.Secure.String() || l.Security == dane.Insecure.String() {
		if len(l.Records) == 0 && l.Answer == "NOERROR" {
			words = "none"
		}
		if len(l.CNAMEs) > 0 {
			words += ", through the CNAME at " + strings.Join(l.CNAMEs, ", ")
		}
		if l.Security == dane.Secure.String() {
			return words + authenticated(true)
		}
		return words + ", not authenticated"
	}
	return words
}
