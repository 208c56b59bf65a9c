package reporting

import (
	"context"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// This file: policies that could not be fetched (RFC 8460, 4.3). A failure is held back
// for some minutes: by then the keeper knows whether it was an outage of ours, in which
// no fetch succeeds. Then nothing of it is reported.

const (
	maxWaiting = 1024             // lookups on their way from tlsmap
	maxBack    = 20_000           // failures held back
	holdBack   = 10 * time.Minute // twice what the keeper needs to notice
	lookEvery  = 5 * time.Second
)

// NotFetched takes note of a lookup that was answered as without a policy, since the
// domain's policy could not be fetched. It does not block.
func (s *Service) NotFetched(domain []byte) {
	if s == nil {
		return
	}
	select {
	case s.notFetched <- string(domain):
	default:
		s.lost.Add(1)
	}
}

// A heldBack is a failure that is not counted yet.
type heldBack struct {
	at    time.Time
	event tlsrpt.Event
}

// countNotFetched counts failures until ctx ends. What is held back then is dropped.
func (s *Service) countNotFetched(ctx context.Context) {
	var back []heldBack
	var batch store.Batch
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case domain := <-s.notFetched:
			if len(back) >= maxBack {
				s.lost.Add(1)
			} else if e, ok := s.fetchFailure(domain); ok {
				back = append(back, heldBack{time.Now(), e})
			}
		case now := <-tick.C:
			if s.FetchDead() {
				back = nil
				continue
			}
			batch.Reset(tlsrpt.DayOf(now))
			for len(back) > 0 && now.Sub(back[0].at) >= holdBack {
				batch.Add(&back[0].event)
				back = back[1:]
			}
			if batch.Sessions() > 0 && s.store.Write(&batch) != nil { // the store says why in its Stats
				s.lost.Add(uint64(batch.Sessions()))
			}
		case <-ctx.Done():
			return
		}
	}
}

// fetchFailure makes an event of what the keeper knows of a domain.
func (s *Service) fetchFailure(domain string) (e tlsrpt.Event, ok bool) {
	n, ok := s.Negative(domain)
	if !ok {
		return e, false
	}
	failure := tlsrpt.Failure{Result: tlsrpt.ResultType(n.Result)}
	if tlsrpt.Reason(n.Err) {
		failure.Reason = n.Err
	}
	e = tlsrpt.Event{
		Domain: domain, Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: domain},
		Failed: true, Failures: []tlsrpt.Failure{failure},
	}
	return e, e.Normalize()
}
