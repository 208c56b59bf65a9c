package tlsmap

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
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
	// Lookup fills in h with the live policy of the domain, or returns
	// keeper.ErrNoPolicy or keeper.ErrUnreadable.
	Lookup(ctx context.Context, domain []byte, h *keeper.Held) error
}

// NextHops tells what the DNS has on next-hops; *dane.Checker is one.
type NextHops interface {
	// Check returns what DANE says of a next-hop and of those of its MX hosts
	// that are listed. When ctx ends, the state is Undecided.
	Check(ctx context.Context, n dane.NextHop, listed func(host string) bool) dane.Finding
	// MX returns the MX hosts of a domain.
	MX(ctx context.Context, domain string) (*dane.MXSet, error)
	// Verdict says whether the resolver validates, and has it probed when it
	// is time. It does not wait.
	Verdict() dane.Probe
}

// Options are what a Server answers from.
type Options struct {
	Policies Policies
	NextHops NextHops      // nil: maps that need to ask about the next-hop defer under an enforced policy
	Timeout  time.Duration // for one lookup in all, where the DNS is asked about the next-hop; zero: none
	Log      *slog.Logger  // nil: none
}

// A Server answers lookups in the maps of a table. It is a
// socketmap.Handler.
type Server struct {
	table    *Table
	policies Policies
	hops     NextHops
	timeout  time.Duration
	exempt   atomic.Pointer[exempt.Set] // for good
	timed    atomic.Pointer[exempt.Set] // until a time
	lookups  sync.Pool                  // of *lookup
	probe    sync.Once                  // of the resolver, when DANE first matters
	counters []mapCounters              // as the table's maps

	rehearsed                                *rehearsals
	rehearsing, deferred, shortened, unknown *sparseLog

	unknownMu    sync.Mutex
	unknownCount uint64
	lastUnknown  UnknownMap
}

// A lookup is what one call needs, kept for the next one.
type lookup struct {
	held   keeper.Held
	room   [hostname.MaxName]byte // for a domain that is not a part of the key
	domain []byte                 // the policy domain; nil: there is none
	why    string                 // what lies behind a TEMP reply; empty: nothing more to say
}

// notFromMemory has the lookup timed, which began then.
func (l *lookup) notFromMemory(began time.Time) {
	if l.held.Since.IsZero() {
		l.held.Since = began
	}
}

// NewServer returns a Server for the maps of t.
func NewServer(t *Table, o Options) *Server {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		table: t, policies: o.Policies, hops: o.NextHops, timeout: o.Timeout,
		counters: make([]mapCounters, len(t.maps)), rehearsed: newRehearsals(),
		rehearsing: newSparseLog(log, slog.LevelInfo, "rehearsal: answered NOTFOUND, would have answered otherwise"),
		deferred:   newSparseLog(log, slog.LevelWarn, "mail is deferred"),
		shortened:  newSparseLog(log, slog.LevelWarn, "policy is too long for its attributes: answered as the map without tlsrpt"),
		unknown:    newSparseLog(log, slog.LevelWarn, "lookup in an unknown map: mail is deferred"),
	}
	s.lookups.New = func() any { return new(lookup) }
	s.exempt.Store(&exempt.Set{})
	s.timed.Store(&exempt.Set{})
	return s
}

// AppendReply answers one lookup; it is the method of socketmap.Handler.
func (s *Server) AppendReply(ctx context.Context, dst, mapName, key []byte) []byte {
	i := s.table.index(mapName)
	if i < 0 {
		s.noteUnknown(mapName)
		return s.table.appendUnknownMap(dst, mapName)
	}
	m := &s.table.maps[i]
	start := len(dst)
	l := s.lookups.Get().(*lookup)
	l.domain, l.why, l.held.Since = nil, "", time.Time{}
	dst, out := s.answer(ctx, dst, m, key, l)
	reply := dst[start:]
	switch {
	case m.Enforce:
		if out == outcomeTemp && s.deferred.due(m.Name, key, reply) {
			s.logDeferred(m, key, reply, l)
		}
	case out == outcomeOK, out == outcomeTemp:
		s.rehearse(m, key, reply, out == outcomeTemp, l)
		dst = append(dst[:start], replyNotFound...)
		if out == outcomeOK {
			out = outcomeRehearsedOK
		} else {
			out = outcomeRehearsedTemp
		}
	}
	if string(l.domain) != keeper.ProbeDomain { // excluded from the metrics of lookups
		s.counters[i].by[out].Add(1)
		if since := l.held.Since; !since.IsZero() {
			s.counters[i].addSlow(time.Since(since))
		}
	}
	s.lookups.Put(l)
	return dst
}

// logDeferred logs a TEMP reply and what lies behind it.
func (s *Server) logDeferred(m *mta.Map, key, reply []byte, l *lookup) {
	domain := l.domain
	if domain == nil {
		domain = key
	}
	attrs := []slog.Attr{
		slog.String("domain", shown(domain)),
		slog.String("map", m.Name),
		slog.String("reason", shown(bytes.TrimPrefix(reply, []byte(replyTemp)))),
	}
	if l.why != "" {
		attrs = append(attrs, slog.String("err", shown([]byte(l.why))))
	}
	s.deferred.print(attrs...)
}

func shown(b []byte) string { return text.Cut(string(b), logShown) }

// answer appends the reply that the map would give if it is no rehearsal.
func (s *Server) answer(ctx context.Context, dst []byte, m *mta.Map, key []byte, l *lookup) ([]byte, outcome) {
	hop, kind := mta.ParseKey(key, l.room[:0])
	switch {
	case kind == mta.KeyUnconvertible:
		return appendUnconvertible(dst, m), outcomeTemp
	case kind != mta.KeyPolicyDomain:
		return append(dst, replyNotFound...), outcomeNotFound
	case s.isExempt(hop.Domain) && string(hop.Domain) != keeper.ProbeDomain:
		return append(dst, replyNotFound...), outcomeExempt
	}

	l.domain = hop.Domain
	var began time.Time
	if asksDNS(m) {
		began = time.Now()
	}
	if m.DANE && s.hops != nil {
		s.probe.Do(func() { s.hops.Verdict() }) // nobody waits for the probe
	}
	err := s.policies.Lookup(ctx, hop.Domain, &l.held)
	state := stateOf(err, l.held.Mode)
	var found dane.Finding
	if m.DANE && applies(m, state) {
		found = s.findDANE(ctx, hop, began, l)
	}
	switch Decide(state, m, found.State) {
	case StandAside:
		return append(dst, replyNotFound...), outcomeNotFound
	case Secure:
		if m.Format == mta.FormatExim {
			return s.answerHosts(ctx, dst, m, hop, began, l)
		}
		start := len(dst)
		dst = s.appendSecure(dst, m, hop.Domain, &l.held, found.Hosts)
		if dst[start] != replySecure[0] {
			return dst, outcomeTemp
		}
		return dst, outcomeOK
	case DANEOnly:
		return append(dst, replyDANEOnly...), outcomeOK
	}
	l.why = found.Why
	return appendTemp(dst, m, deferReason(err), hop.Domain), outcomeTemp
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
	if s.hops == nil {
		return dane.Finding{Why: "no resolver is configured"}
	}
	ctx, cancel := s.within(ctx, began)
	defer cancel()
	found := s.hops.Check(ctx, n, AcceptedBy(matchOf(&l.held)))
	if found.Waited {
		l.notFromMemory(began)
	}
	return found
}

// within bounds ctx by the time of a lookup.
func (s *Server) within(ctx context.Context, began time.Time) (context.Context, context.CancelFunc) {
	if s.timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, began.Add(s.timeout))
}

// appendSecure appends the reply for a policy that applies: the one kept on the
// keeper's entry, or a new one, which is then kept there. Only, if there are
// any, are the only hosts of the policy that may be used.
func (s *Server) appendSecure(dst []byte, m *mta.Map, domain []byte, h *keeper.Held, only []string) []byte {
	slot := replySlot(m)
	keep := h.Entry != nil && only == nil
	if keep {
		if kept := h.Entry.Reply(slot); len(kept) > 0 {
			return append(dst, kept...)
		}
	}
	r := secure{domain: domain, match: matchOf(h)}
	if !MatchListCurrent(r.match) {
		return appendTemp(dst, m, reasonUnreadable, domain)
	}
	if r.match = r.match[1:]; only != nil {
		r.match = exactNames(only)
	}
	if m.TLSRPT {
		if p, err := policy.Parse(textOf(h)); err == nil {
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
		h.Entry.KeepReply(slot, bytes.Clone(dst[start:]))
	}
	return dst
}

// stateOf returns the state of the policy after a lookup in the keeper.
func stateOf(err error, mode policy.Mode) PolicyState {
	switch {
	case err == nil:
		return StateOf(mode)
	case errors.Is(err, keeper.ErrNoPolicy):
		return PolicyAbsent
	}
	return PolicyUnreadable
}

// deferReason says in a TEMP reply why the mail has to wait. The words of err
// stay out of it: they may come from the network.
func deferReason(err error) string {
	switch {
	case err == nil:
		return reasonUndecided
	case errors.Is(err, keeper.ErrUnreadable):
		return reasonUnreadable
	}
	return reasonFailed
}
