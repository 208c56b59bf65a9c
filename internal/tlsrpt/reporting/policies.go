package reporting

import (
	"context"
	"regexp"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// This file: failures that the daemon itself knows of. A policy that could not be fetched
// (RFC 8460, 4.3) is held back for some minutes: by then the keeper knows whether it was an
// outage of ours, in which no fetch succeeds. Then nothing of it is reported.

const (
	maxWaiting = 1024             // lookups on their way from tlsmap
	maxBack    = 4096             // failures held back
	maxBarred  = 1 << 20          // bytes of a batch of MX hosts that policies do not list
	holdBack   = 10 * time.Minute // twice what the keeper needs to notice
	lookEvery  = 5 * time.Second
)

// A failedLookup is what tlsmap tells: see Failed of its Options.
type failedLookup struct {
	domain string
	barred []string
}

// Failed takes note of a lookup whose domain has no policy that could be fetched, or
// barred MX hosts that its policy does not list. It does not block.
func (s *Service) Failed(domain []byte, barred []string) {
	if s == nil {
		return
	}
	select {
	case s.failedLookups <- failedLookup{string(domain), barred}:
	default:
		s.lost.Add(1)
	}
}

// A heldBack is a failure that is not counted yet.
type heldBack struct {
	at    time.Time
	event tlsrpt.Event
}

// countFailed counts failures until ctx ends. What is held back then is dropped.
func (s *Service) countFailed(ctx context.Context) {
	var back []heldBack
	var batch store.Batch
	batch.Reset(tlsrpt.DayOf(s.Now()))
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case f := <-s.failedLookups:
			switch {
			case len(f.barred) > 0 && batch.Size() < maxBarred:
				if e, ok := s.mismatch(f); ok {
					batch.Add(&e)
				}
			case len(f.barred) > 0, len(back) >= maxBack:
				s.lost.Add(1)
			default:
				if e, ok := s.fetchFailure(f.domain); ok {
					back = append(back, heldBack{time.Now(), e})
				}
			}
		case now := <-tick.C:
			if s.FetchDead() {
				back = nil
			}
			for len(back) > 0 && now.Sub(back[0].at) >= holdBack {
				batch.Add(&back[0].event)
				back = back[1:]
			}
			s.write(&batch)
			batch.Reset(tlsrpt.DayOf(s.Now()))
		case <-ctx.Done():
			s.write(&batch)
			return
		}
	}
}

// write stores a batch, if there is anything in it. The store says in its Stats why it
// cannot.
func (s *Service) write(batch *store.Batch) {
	if batch.Sessions() > 0 && s.store.Write(batch) != nil {
		s.lost.Add(uint64(batch.Sessions()))
	}
}

// mismatch makes an event of MX hosts that the domain's policy does not list. Nothing is
// held back: the DNS has answered, and the policy is in force.
func (s *Service) mismatch(f failedLookup) (e tlsrpt.Event, ok bool) {
	file, ok := s.Policy(f.domain)
	if !ok {
		return e, false
	}
	e = tlsrpt.Event{Domain: f.domain, Policy: tlsmap.Reported(f.domain, file), Failed: true}
	for _, name := range f.barred {
		if host, ok := tlsrpt.Host(name); ok {
			e.Failures = append(e.Failures, tlsrpt.Failure{Result: tlsrpt.ValidationFailure, MXHost: host, Reason: tlsrpt.ReasonMXMismatch})
		}
	}
	return e, e.Normalize()
}

// applied is what a session of Exim is judged by: see collect.PolicyOf. Exim verifies
// hosts under a testing policy too, but connects to those that it does not list; hosts
// under an enforced policy are the daemon's own answer, and may be aliases by now.
func (s *Service) applied(domain, host string) (p tlsrpt.Policy, listed, ok bool) {
	file, ok := s.Policy(domain)
	if !ok {
		return p, false, false
	}
	parsed, err := policy.Parse(file)
	if err != nil || parsed.Mode == policy.ModeNone {
		return p, false, false
	}
	listed = parsed.Mode == policy.ModeEnforce || tlsmap.Lists(tlsmap.MatchList(parsed), host)
	return tlsmap.Reported(domain, file), listed, true
}

// ours is what an error says of this machine and its network: the end of a connection,
// another at each attempt, and the resolver. Strangers are not told.
var ours = regexp.MustCompile(`(dial|read|write) tcp \S+: | \(server \S+\)`)

// reason makes a failure-reason-code of an error. "": it can be none.
func reason(err string) string {
	if code := text.Cut(ours.ReplaceAllString(err, ""), tlsrpt.MaxText-len("...")); tlsrpt.Reason(code) {
		return code
	}
	return ""
}

// fetchFailure makes an event of what the keeper knows of a domain, if the failure is
// proven to be the domain's. By now that may be another failure, which is none of RFC
// 8460, 4.3.
func (s *Service) fetchFailure(domain string) (e tlsrpt.Event, ok bool) {
	n, ok := s.Negative(domain)
	failure := tlsrpt.Failure{Result: tlsrpt.ResultType(n.Result), Reason: reason(n.Err)}
	if !ok || !n.Proven || tlsrpt.ResultIndex(failure.Result) < 0 {
		return e, false
	}
	e = tlsrpt.Event{
		Domain: domain, Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: domain},
		Failed: true, Failures: []tlsrpt.Failure{failure},
	}
	return e, e.Normalize()
}
