package tlsmap_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// policyOf returns an enforced policy with these mx patterns.
func policyOf(mx ...string) *policy.Policy {
	p := &policy.Policy{Mode: policy.ModeEnforce, MX: mx}
	p.Fields = append(p.Fields, policy.Field{Key: "version", Value: "STSv1"}, policy.Field{Key: "mode", Value: "enforce"})
	for _, pattern := range mx {
		p.Fields = append(p.Fields, policy.Field{Key: "mx", Value: pattern})
	}
	p.Fields = append(p.Fields, policy.Field{Key: "max_age", Value: "86400"})
	return p
}

// A heldPolicy is what the fake keeper has of a domain.
type heldPolicy struct {
	mode   policy.Mode
	match  []byte
	text   []byte
	entry  *keeper.Entry // nil: as from the store
	failed error
}

func enforced(mx ...string) *heldPolicy {
	p := policyOf(mx...)
	var text []byte
	for _, f := range p.Fields {
		text = append(text, f.Key+": "+f.Value+"\n"...)
	}
	return &heldPolicy{mode: policy.ModeEnforce, match: tlsmap.MatchList(p), text: text}
}

// fakePolicies holds policies by domain.
type fakePolicies struct {
	mu    sync.Mutex
	held  map[string]*heldPolicy
	asked []string
	mute  bool          // do not note what is asked
	takes time.Duration // of a lookup, which is then not from memory
}

func (f *fakePolicies) Lookup(_ context.Context, domain []byte, h *keeper.Held) error {
	if !f.mute {
		f.mu.Lock()
		f.asked = append(f.asked, string(domain))
		f.mu.Unlock()
	}
	if f.takes > 0 {
		h.Since = time.Now().Add(-f.takes)
	}
	p, ok := f.held[string(domain)]
	if !ok {
		return keeper.ErrNoPolicy
	}
	h.Mode, h.Match, h.Text, h.Entry = p.mode, p.match, p.text, p.entry
	return p.failed
}

// newFake holds a domain for each case that the tests need.
func newFake() *fakePolicies {
	hold := func(domain string, mode policy.Mode) *heldPolicy {
		p := enforced("mx."+domain, "*.example.net")
		p.mode, p.entry = mode, &keeper.Entry{}
		return p
	}
	f := &fakePolicies{held: map[string]*heldPolicy{
		"enforce.example":       hold("enforce.example", policy.ModeEnforce),
		"stored.example":        enforced("mx.stored.example", "*.example.net"),
		"testing.example":       hold("testing.example", policy.ModeTesting),
		"none.example":          hold("none.example", policy.ModeNone),
		"invalid.example":       hold("invalid.example", 77),
		"unreadable.example":    {failed: keeper.ErrUnreadable},
		"crowded.example":       {failed: fmt.Errorf("%w: no free place in 20s", keeper.ErrOurFault)},
		"wrapped.example":       {failed: fmt.Errorf("wrapped.example: %w", keeper.ErrNoPolicy)},
		"unfetched.example":     {failed: keeper.ErrNotFetched},
		"broken.example":        {failed: errors.New("evil words\r\nfrom the network")},
		"keyword.example":       enforced("hostname"),
		"xn--bcher-kva.example": enforced("mx.xn--bcher-kva.example"),
	}}
	f.held["keyword.example"].entry = &keeper.Entry{}
	return f
}

// A lab is a server with the built-in maps and one of each kind that a
// configuration can make, before fakes.
type lab struct {
	*tlsmap.Server
	table    *tlsmap.Table
	policies *fakePolicies
	hops     *fakeHops
	log      bytes.Buffer

	failed []string // as Options.Failed was told: the domain and its barred hosts
}

func newLab(t testing.TB, timeout time.Duration) *lab {
	t.Helper()
	l := &lab{policies: newFake(), hops: newFakeHops()}
	var err error
	l.table, err = tlsmap.NewTable(append(mta.Builtin(),
		mta.Map{Name: "nosni", Format: mta.FormatPostfix, Enforce: true},
		mta.Map{Name: "strict", Format: mta.FormatPostfix, Servername: true, Enforce: true, Testing: true},
		mta.Map{Name: "rehearsal", Format: mta.FormatPostfix, Servername: true},
		mta.Map{Name: "exim-rehearsal", Format: mta.FormatExim},
	))
	if err != nil {
		t.Fatal(err)
	}
	l.Server = tlsmap.NewServer(l.table, tlsmap.Options{
		Policies: l.policies, NextHops: l.hops, Timeout: timeout, Log: slog.New(slog.NewTextHandler(&l.log, nil)),
		Failed: func(domain []byte, barred []string) {
			l.failed = append(l.failed, strings.Join(append([]string{string(domain)}, barred...), " "))
		},
	})
	return l
}

func (l *lab) ask(mapName, key string) string { return ask(l.Server, mapName, key) }

// lines returns how many log lines have the text.
func (l *lab) lines(text string) int {
	n := 0
	for line := range strings.Lines(l.log.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func ask(s *tlsmap.Server, mapName, key string) string {
	return string(s.AppendReply(context.Background(), nil, []byte(mapName), []byte(key)))
}

// render returns the reply of a map with these properties for an enforced
// policy.
func render(t testing.TB, m mta.Map, domain string, p *policy.Policy) string {
	t.Helper()
	return explain(t, m, tlsmap.Known{Domain: domain, State: tlsmap.PolicyEnforced, Policy: p}).Reply
}

func explain(t testing.TB, m mta.Map, k tlsmap.Known) tlsmap.MapReply {
	t.Helper()
	m.Name, m.Enforce = "x", true
	if m.Format == "" {
		m.Format = mta.FormatPostfix
	}
	table, err := tlsmap.NewTable([]mta.Map{m})
	if err != nil {
		t.Fatal(err)
	}
	return table.Replies(k)[0]
}

// fakeHops knows next-hops by name. Others are Absent.
type fakeHops struct {
	mu       sync.Mutex
	findings map[string]dane.Finding
	takes    time.Duration // of a first check, and of an MX lookup
	known    map[dane.NextHop]bool
	asked    []dane.NextHop
	listed   func(string) bool // of the last check
	verdicts int
	mx       map[string]*dane.MXSet
	mxErr    error
	mxAsked  []string
}

func newFakeHops() *fakeHops {
	return &fakeHops{known: map[dane.NextHop]bool{}, mx: map[string]*dane.MXSet{}, findings: map[string]dane.Finding{
		"dane.example":      {State: dane.Usable},
		"sick.example":      {State: dane.LookupFailed},
		"mixed.example":     {State: dane.SomeFailed, Why: "of a reason", Hosts: []string{"mx2.mixed.example", "nexthop", "_x.mixed.example", "mx.deep.mixed.example"}},
		"dead.example":      {State: dane.AddressesFailed, Why: "of a reason", Hosts: []string{"mx2.dead.example", "mx.deep.dead.example"}},
		"undecided.example": {State: dane.Undecided, Why: "the MX lookup failed"},
	}}
}

func (f *fakeHops) finding(n dane.NextHop) dane.Finding {
	if found, ok := f.findings[n.Host]; ok {
		return found
	}
	return dane.Finding{State: dane.Absent}
}

func (f *fakeHops) Check(ctx context.Context, n dane.NextHop, listed func(string) bool) dane.Finding {
	f.mu.Lock()
	f.listed = listed
	found, takes := f.finding(n), f.takes
	if f.known[n] {
		f.mu.Unlock()
		return found
	}
	f.asked = append(f.asked, n)
	f.known[n], found.Waited = true, true
	f.mu.Unlock()
	select {
	case <-time.After(takes):
		return found
	case <-ctx.Done():
		return dane.Finding{Why: "it took too long"}
	}
}

func (f *fakeHops) MX(ctx context.Context, domain string) (*dane.MXSet, error) {
	f.mu.Lock()
	f.mxAsked = append(f.mxAsked, domain)
	set, err, takes := f.mx[domain], f.mxErr, f.takes
	f.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if set == nil && err == nil {
		set = &dane.MXSet{Hosts: []dane.MXHost{{Name: domain}}}
	}
	return set, err
}

func (f *fakeHops) Verdict() dane.Probe {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.verdicts++
	return dane.Probe{}
}
