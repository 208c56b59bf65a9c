package reporting

import (
	"context"
	"slices"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// This file: probes of domains whose policy is in testing. Postfix reports their sessions
// as without a policy, and as successful whatever the certificate. So the daemon itself has
// one session a day with each of their MX hosts, and counts it under the testing policy.

const (
	probeEvery = time.Minute     // between two looks whether the store has merged sessions
	probeTime  = 2 * time.Minute // for the hosts of a domain
	maxProbed  = 2000            // domains of a day
)

// A probing is the probes of a day.
type probing struct {
	*Service
	day  tlsrpt.Day
	see  func(ctx context.Context, host string) *tlsrpt.Failure // see Options.Prober
	done map[string]bool                                        // domains
	// proven: a session succeeded under a policy. Before, failures may be a fault of ours:
	// something on the way may take STARTTLS out of all sessions.
	proven bool
}

// probeTesting probes until ctx ends, each time the store has merged sessions.
func (s *Service) probeTesting(ctx context.Context) error {
	p, merged := probing{Service: s}, uint64(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(probeEvery):
		}
		now, day := s.store.Stats().Merged, tlsrpt.DayOf(s.Now())
		if now == merged || s.FetchDead() {
			continue
		}
		if merged = now; day != p.day {
			see, err := s.Prober()
			if err != nil {
				return err
			}
			p = probing{s, day, see, map[string]bool{}, false}
			s.works("probes", func() {})
		}
		if err := p.search(ctx); err != nil {
			return err
		}
	}
}

// search probes the domains to which mail went today: Postfix tells of sessions without a
// policy, more than our report mails make. A domain with a session under MTA-STS is left
// out: it was probed before a restart, or Exim has told of it.
func (p *probing) search(ctx context.Context) error {
	skip, sessions := exempt.ForGood(p.Config.Skip), map[string]uint64{}
	err := p.store.Domains(p.day, func(t tlsrpt.Total) error {
		domain := t.Domain
		_, testing := p.testing(domain)
		wanted := testing != nil && !p.done[domain] && !skip.Has([]byte(domain)) && len(p.done)+len(sessions) < maxProbed
		if p.proven && !wanted {
			return nil
		}
		rows, err := p.store.Brief(p.day, domain, 0)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row.Policy.Type != tlsrpt.TypeNone {
				wanted = wanted && row.Policy.Type != tlsrpt.TypeSTS
				p.proven = p.proven || row.Successful > 0
			} else if wanted {
				sessions[domain] += row.Successful
			}
		}
		if !wanted {
			delete(sessions, domain)
		}
		return ctx.Err()
	})
	p.mu.Lock()
	d := p.deliverer
	p.mu.Unlock()
	if err != nil || len(sessions) == 0 || d == nil {
		return err
	}
	mails, err := d.Mailed(p.day)
	for domain, n := range sessions {
		if err == nil && n > mails[domain] && tlsrpt.DayOf(p.Now()) == p.day && ctx.Err() == nil {
			p.domain(ctx, domain)
		}
	}
	return err
}

// testing returns the policy of a domain, nil if it is not in testing.
func (p *probing) testing(domain string) (text []byte, _ *policy.Policy) {
	text, _ = p.Policy(domain)
	if parsed, err := policy.Parse(text); err == nil && parsed.Mode == policy.ModeTesting {
		return text, parsed
	}
	return nil, nil
}

// domain probes the hosts of a domain that asks for reports.
func (p *probing) domain(ctx context.Context, domain string) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	p.done[domain] = true
	text, testing := p.testing(domain)
	answer, err := p.Resolver.Query(ctx, report.RecordName(domain), resolver.TypeTXT)
	if err == nil {
		_, err = report.FindRecord(answer.Texts)
	}
	if err != nil || testing == nil {
		return
	}
	set, err := p.MX(ctx, domain)
	if err != nil {
		return
	}
	var batch store.Batch
	batch.Reset(p.day)
	doubt := false
	for _, mx := range set.Hosts {
		seen := &tlsrpt.Failure{Result: tlsrpt.ValidationFailure, MXHost: mx.Name, Reason: tlsrpt.ReasonMXMismatch}
		if slices.ContainsFunc(testing.MX, func(pattern string) bool { return policy.Match(pattern, mx.Name) }) { // RFC 8461, 4.1
			if ctx.Err() != nil {
				break
			} else if seen = p.see(ctx, mx.Name); seen == nil {
				continue
			}
			seen.Reason = reason(seen.Reason)
			p.proven, doubt = p.proven || seen.Result == "", doubt || seen.Result != ""
		}
		e := tlsrpt.Event{Domain: domain, Policy: tlsmap.Reported(domain, text), Failed: seen.Result != "", Failures: []tlsrpt.Failure{*seen}}
		if e.Normalize() {
			batch.Add(&e)
		}
	}
	if doubt && !p.proven {
		delete(p.done, domain) // until a session succeeds; the hosts are not asked again
		return
	}
	p.write(&batch)
}
