package reporting

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

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
	probeEvery   = time.Minute     // between two looks whether the store has merged sessions
	probeTime    = 2 * time.Minute // for the hosts of a domain
	probesAtOnce = 8               // domains: hosts that hold a connection open must not starve others
	maxProbed    = 2000            // domains of a day
)

// A probing is the probes of a day.
type probing struct {
	*Service
	merged uint64 // sessions, at the last search
	day    tlsrpt.Day
	see    func(ctx context.Context, host string) *tlsrpt.Failure // see Options.Prober
	one    sync.Mutex                                             // for what follows, while domains are probed
	done   map[string]bool                                        // domains
	// proven: a session succeeded under a policy. Before, failures may be a fault of ours:
	// something on the way may take STARTTLS out of all sessions.
	proven bool
}

// run probes until ctx ends, each time the store has merged sessions.
func (p *probing) run(ctx context.Context) (err error) {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(probeEvery):
		}
		merged, day := p.store.Stats().Merged, tlsrpt.DayOf(p.Now())
		if merged == p.merged || p.FetchDead() {
			continue
		}
		if day != p.day {
			if p.see, err = p.Prober(); err != nil {
				return err
			}
			p.day, p.done, p.proven = day, map[string]bool{}, false
		}
		if err := p.search(ctx); err != nil {
			return err
		}
		p.merged = merged
		p.works("probes", func() {})
	}
}

// search probes the domains to which mail went today: Postfix tells of sessions without a
// policy, more than our report mails make.
func (p *probing) search(ctx context.Context) error {
	p.mu.Lock()
	d := p.deliverer
	p.mu.Unlock()
	if d == nil {
		return nil
	}
	mails, err := d.Mailed(p.day)
	if err != nil {
		return err
	}
	var names []string
	skip := exempt.ForGood(p.Config.Skip)
	wanted := func(domain string) bool {
		_, testing := p.testing(domain)
		return testing != nil && !p.done[domain] && !skip.Has([]byte(domain))
	}
	_, err = p.store.EachDomain([]tlsrpt.Day{p.day}, "", func(domain string, _ [][]tlsrpt.Summary) bool {
		if !p.proven || wanted(domain) {
			names = append(names, domain)
		}
		return ctx.Err() == nil
	})
	var due []string
	for _, domain := range names {
		var rows []tlsrpt.Summary
		if err == nil {
			rows, err = p.store.Brief(p.day, domain, 0)
		}
		if err == nil && p.due(rows, mails[domain]) && wanted(domain) && len(p.done) < maxProbed {
			p.done[domain] = true
			due = append(due, domain)
		}
	}
	rand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	var group errgroup.Group
	group.SetLimit(probesAtOnce)
	for _, domain := range due {
		group.Go(func() error {
			if tlsrpt.DayOf(p.Now()) == p.day {
				p.domain(ctx, domain)
			}
			return nil
		})
	}
	return errors.Join(err, group.Wait())
}

// due reports whether a domain's day has sessions of other mail than our report mails, and
// none under MTA-STS: then it was probed before a restart, or Exim has told of it.
func (p *probing) due(rows []tlsrpt.Summary, mails uint64) bool {
	sessions, judged := uint64(0), false
	for _, row := range rows {
		if row.Policy.Type == tlsrpt.TypeNone {
			sessions += row.Successful
			continue
		}
		p.proven = p.proven || row.Successful > 0
		judged = judged || row.Policy.Type == tlsrpt.TypeSTS && len(row.Policy.Strings) > 0 // else the policy could not be fetched
	}
	return sessions > mails && !judged
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
	succeeds, doubt := false, false
	for _, mx := range set.Hosts {
		seen := &tlsrpt.Failure{Result: tlsrpt.ValidationFailure, MXHost: mx.Name, Reason: tlsrpt.ReasonMXMismatch}
		if slices.ContainsFunc(testing.MX, func(pattern string) bool { return policy.Match(pattern, mx.Name) }) { // RFC 8461, 4.1
			if ctx.Err() != nil {
				break
			} else if seen = p.see(ctx, mx.Name); seen == nil {
				continue
			}
			seen.Reason = reason(seen.Reason)
			succeeds, doubt = succeeds || seen.Result == "", doubt || seen.Result != ""
		}
		e := tlsrpt.Event{Domain: domain, Policy: tlsmap.Reported(domain, text), Failed: seen.Result != "", Failures: []tlsrpt.Failure{*seen}}
		if e.Normalize() {
			batch.Add(&e)
		}
	}
	p.one.Lock()
	defer p.one.Unlock()
	if p.proven = p.proven || succeeds; doubt && !p.proven {
		delete(p.done, domain) // until a session succeeds; the hosts are not asked again
		return
	}
	p.write(&batch)
}
