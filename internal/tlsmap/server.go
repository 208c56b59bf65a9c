package tlsmap

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// Policies finds the policy of a domain; *keeper.Keeper is one.
type Policies interface {
	// Lookup fills in h with the live policy of the domain, or returns one of
	// the errors of package keeper.
	Lookup(ctx context.Context, domain []byte, h *keeper.Held) error
}

// NextHops looks up DANE and MX hosts of next-hops; *dane.Checker is one and
// documents the methods.
type NextHops interface {
	Check(ctx context.Context, n dane.NextHop, listed func(host string) bool) dane.Finding
	MX(ctx context.Context, domain string) (*dane.MXSet, error)
	Verdict() dane.Probe
}

// Options are what a Server answers from.
type Options struct {
	Policies Policies
	NextHops NextHops         // may be nil if neither DANE nor Exim is asked for
	Timeout  time.Duration    // for one lookup in all, where the DNS is asked about the next-hop; an hour
	Log      *slog.Logger     // discards
	Now      func() time.Time // the clock by which exemptions end; nil: time.Now

	// Failed is told of a lookup by an MTA, in a map that is no rehearsal, whose domain
	// has something to mend. Without barred it was answered as without a policy, since
	// none could be fetched (keeper.ErrNotFetched); else see dane.Barred. It must not
	// block, nor keep the domain. Nil: nobody is told.
	Failed func(domain []byte, barred []string)
}

// NotMail before the name of a map says that no MTA asks: -query does so.
const NotMail = "-query:"

// A Server answers lookups in the maps of a table. It is a
// socketmap.Handler.
type Server struct {
	table    *Table
	policies Policies
	hops     NextHops
	timeout  time.Duration
	failed   func([]byte, []string)     // Options.Failed
	exempt   atomic.Pointer[exempt.Set] // for good
	timed    atomic.Pointer[exempt.Set] // until a time
	now      func() time.Time           // Options.Now
	lookups  sync.Pool                  // of *lookup
	probe    sync.Once                  // of the resolver, when DANE first matters
	counters []mapCounters              // as the table's maps

	rehearsed                                *rehearsals
	rehearsing, deferred, shortened, unknown *sparseLog

	unknownCount atomic.Uint64
	lastUnknown  atomic.Pointer[UnknownMap]
}

// A lookup is what one call needs, kept for the next one.
type lookup struct {
	held   keeper.Held
	slot   int                    // of the map's replies among those kept with the policy
	room   [hostname.MaxName]byte // for a domain that is not a part of the key
	domain []byte                 // the policy domain; nil: there is none
	exempt bool                   // the domain is
	mail   bool                   // Options.Failed counts the lookup
	why    string                 // the cause of a TEMP reply, for the log; may be empty
}

// NewServer returns a Server for the maps of t.
func NewServer(t *Table, o Options) *Server {
	log := cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	s := &Server{
		table: t, policies: o.Policies, hops: o.NextHops, timeout: cmp.Or(o.Timeout, time.Hour), failed: o.Failed,
		counters: make([]mapCounters, len(t.maps)), rehearsed: newRehearsals(),
		rehearsing: newSparseLog(log, slog.LevelInfo, "rehearsal: answered NOTFOUND, would have answered otherwise"),
		deferred:   newSparseLog(log, slog.LevelWarn, "mail is deferred"),
		shortened:  newSparseLog(log, slog.LevelWarn, "policy is too long for its attributes: answered as the map without tlsrpt"),
		unknown:    newSparseLog(log, slog.LevelWarn, "lookup in an unknown map: mail is deferred"),
	}
	if s.now = o.Now; s.now == nil {
		s.now = time.Now
	}
	s.lookups.New = func() any { return new(lookup) }
	s.exempt.Store(&exempt.Set{})
	s.timed.Store(&exempt.Set{})
	return s
}

// SetExempt replaces the entries that are exempt for good. exempt.Parse has returned each.
func (s *Server) SetExempt(entries []string) {
	set := exempt.ForGood(entries)
	s.exempt.Store(&set)
}

// SetTimedExempt replaces the exemptions that are in force until a time. On an error
// they stay as they were.
func (s *Server) SetTimedExempt(list []exempt.Exemption) error {
	set, err := exempt.Timed(list)
	if err == nil {
		s.timed.Store(&set)
	}
	return err
}

// ExemptBy returns the entries that exempt the domain, in canonical form: those
// without an end, whose Until is zero, and then those until a time.
func (s *Server) ExemptBy(domain string) []exempt.Exemption {
	now := s.now().Unix()
	return append(s.exempt.Load().Matching(domain, now), s.timed.Load().Matching(domain, now)...)
}

// Exemptions returns all entries that are in force: those for good first.
func (s *Server) Exemptions() []exempt.Exemption {
	now := s.now().Unix()
	return append(s.exempt.Load().All(now), s.timed.Load().All(now)...)
}

// isExempt looks at the clock only where an exemption has an end.
func (s *Server) isExempt(domain []byte) bool {
	timed := *s.timed.Load()
	return s.exempt.Load().Has(domain) || len(timed) > 0 && timed.Until(domain, s.now().Unix()) != 0
}

// AppendReply answers one lookup; it is the method of socketmap.Handler.
func (s *Server) AppendReply(ctx context.Context, dst, mapName, key []byte) []byte {
	mapName, tool := bytes.CutPrefix(mapName, []byte(NotMail))
	i := s.table.index(mapName)
	if i < 0 {
		if !tool {
			s.noteUnknown(mapName)
		}
		return s.table.appendUnknownMap(dst, mapName)
	}
	m := &s.table.maps[i]
	start := len(dst)
	l := s.lookups.Get().(*lookup)
	l.slot, l.domain, l.exempt, l.why, l.held.Since = i, nil, false, "", time.Time{}
	l.mail = s.failed != nil && m.Enforce && !tool
	dst = s.answer(ctx, dst, m, key, l)
	reply := dst[start:]
	out := outcomeOf(reply, l.exempt)
	switch {
	case m.Enforce:
		if out == outcomeTemp && s.deferred.due(m.Name, key, reply) {
			s.logDeferred(m, key, reply, l)
		}
	case out == outcomeOK, out == outcomeTemp:
		s.rehearse(m, key, reply, out == outcomeTemp, l)
		dst = append(dst[:start], replyNotFound...)
		out += outcomeRehearsedOK - outcomeOK
	}
	if string(l.domain) != keeper.ProbeDomain && !tool { // excluded from the metrics of lookups
		s.counters[i].by[out].Add(1)
		if since := l.held.Since; !since.IsZero() {
			s.counters[i].addSlow(time.Since(since))
		}
	}
	s.lookups.Put(l)
	return dst
}

// logDeferred logs a TEMP reply and its cause.
func (s *Server) logDeferred(m *mta.Map, key, reply []byte, l *lookup) {
	var err slog.Attr
	if l.why != "" {
		err = slog.String("err", text.Cut(l.why, logShown))
	}
	s.deferred.print(slog.String("domain", l.shownDomain(key)), slog.String("map", m.Name),
		slog.String("reason", shown(bytes.TrimPrefix(reply, []byte(replyTemp)))), err)
}

// shownDomain is the policy domain, or the key where it is none.
func (l *lookup) shownDomain(key []byte) string {
	return text.Cut(cmp.Or(string(l.domain), string(key)), logShown)
}

func shown(b []byte) string { return text.Cut(string(b), logShown) }

// answer appends the reply that the map would give if it is no rehearsal.
func (s *Server) answer(ctx context.Context, dst []byte, m *mta.Map, key []byte, l *lookup) []byte {
	hop, kind := mta.ParseKey(key, l.room[:0])
	switch {
	case kind == mta.KeyUnconvertible:
		return appendTemp(dst, m, reasonUnconvertible, nil)
	case kind != mta.KeyPolicyDomain:
		return append(dst, replyNotFound...)
	}
	if l.exempt = s.isExempt(hop.Domain) && string(hop.Domain) != keeper.ProbeDomain; l.exempt {
		return append(dst, replyNotFound...)
	}

	l.domain = hop.Domain
	var began time.Time
	if m.DANE || m.Format != mta.FormatPostfix { // for others the keeper looks at the clock, if need be
		began = time.Now()
	}
	if m.DANE {
		s.probe.Do(func() { s.hops.Verdict() }) // nobody waits for the probe
	}
	err := s.policies.Lookup(ctx, hop.Domain, &l.held)
	if l.mail && errors.Is(err, keeper.ErrNotFetched) {
		s.failed(hop.Domain, nil)
	}
	state, reason := stateOf(err, l.held.Mode)
	var found dane.Finding
	if m.DANE && applies(m, state) {
		found = s.findDANE(ctx, hop, began, l)
	}
	switch Decide(state, m, found.State) {
	case StandAside:
		return append(dst, replyNotFound...)
	case Secure:
		if namesHosts(m, l.held.Match) {
			return s.answerHosts(ctx, dst, m, hop, began, l)
		}
		if listed := AcceptedBy(l.held.Match); !slices.ContainsFunc(found.Barred, listed) { // by the policy of now
			s.noteBarred(l, found.Barred)
		}
		return s.appendSecure(dst, m, l, found.Hosts)
	case DANEOnly:
		return append(dst, replyDANEOnly...)
	}
	if l.why = found.Why; err != nil {
		l.why = err.Error()
	}
	return appendTemp(dst, m, reason, hop.Domain)
}

// UnknownPort is why nothing can be said of a next-hop whose port is 0.
const UnknownPort = "the next-hop names a service whose port is not known here: write the port in digits"

// DANENextHop returns the next-hop as package dane takes it. It is false where
// the port is not known: TLSA records are asked for at a port.
func DANENextHop(h mta.NextHop) (dane.NextHop, bool) {
	return dane.NextHop{Host: string(h.Domain), Port: h.Port, Bracketed: h.Bracketed}, h.Port != 0
}

// findDANE returns what DANE has to say of the next-hop, if it can be found out
// in what is left of the lookup's time.
func (s *Server) findDANE(ctx context.Context, hop mta.NextHop, began time.Time, l *lookup) dane.Finding {
	n, ok := DANENextHop(hop)
	if !ok {
		return dane.Finding{Why: UnknownPort}
	}
	ctx, cancel := context.WithDeadline(ctx, began.Add(s.timeout))
	defer cancel()
	match := l.held.Match
	if l.held.Entry == nil {
		match = bytes.Clone(match) // the check may outlive the lookup, and the next one uses held again
	}
	found := s.hops.Check(ctx, n, AcceptedBy(match))
	if found.Waited {
		l.held.Since = cmp.Or(l.held.Since, began)
	}
	return found
}

// noteBarred tells of MX hosts that the policy does not list, if it lists any.
func (s *Server) noteBarred(l *lookup, barred []string) {
	if l.mail && len(barred) > 0 && len(l.held.Match) > 1 {
		s.failed(l.domain, barred)
	}
}

// appendSecure appends the reply for a policy that applies: the one kept on the
// keeper's entry, or a new one, which is then kept there. Only, if there are
// any, are the only hosts of the policy that may be used.
func (s *Server) appendSecure(dst []byte, m *mta.Map, l *lookup, only []string) []byte {
	domain, h := l.domain, &l.held
	keep := h.Entry != nil && only == nil && l.slot < keeper.MaxSlots // later maps render each time
	if keep {
		if kept := h.Entry.Reply(l.slot); len(kept) > 0 {
			return append(dst, kept...)
		}
	}
	r := secure{domain: domain, match: h.Match}
	if !MatchListCurrent(r.match) {
		return appendTemp(dst, m, reasonUnreadable, domain)
	}
	if r.match = r.match[1:]; only != nil {
		r.match = exactNames(m, h.Match, only)
	}
	if m.TLSRPT {
		if p, err := policy.Parse(h.Text); err == nil {
			r.fields = p.Fields
		}
	}
	start := len(dst)
	dst, bare := r.append(dst, m)
	if bare && s.shortened.due(m.Name, domain, nil) {
		s.shortened.print(slog.String("domain", string(domain)), slog.String("map", m.Name),
			slog.String("next", "Postfix checks hosts less strictly for this domain: nothing to do here"))
	}
	if keep {
		h.Entry.KeepReply(l.slot, bytes.Clone(dst[start:]))
	}
	return dst
}

// stateOf returns the state of the policy after a lookup in the keeper, and why
// the mail has to wait if it has to. The words of err stay out of that: they may
// come from the network.
func stateOf(err error, mode policy.Mode) (p PolicyState, reason string) {
	switch {
	case err == nil:
		return StateOf(mode), reasonUndecided
	case errors.Is(err, keeper.ErrNoPolicy):
		return PolicyAbsent, ""
	case errors.Is(err, keeper.ErrUnreadable):
		return PolicyUnreadable, reasonUnreadable
	case errors.Is(err, keeper.ErrOurFault):
		return PolicyUnreadable, reasonOurFault
	}
	return PolicyUnreadable, reasonFailed
}
