package deliver

import (
	"hash/maphash"
	"sync"

	"golang.org/x/net/publicsuffix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

const (
	maxBelowDomain = 10      // reports a day to one destination for the domains below one registrable domain
	maxCounted     = 150_000 // destinations outside their domains, and pairs of both; others get no report
)

// A quota limits the reports of a day that third parties get: at most MaxPerDestination
// go to the registrable domain of a destination for policy domains outside it, at most
// maxBelowDomain of them for those below one registrable domain. Who comes first has it.
type quota struct {
	most int
	seed maphash.Seed

	mu     sync.Mutex
	counts map[uint64]int // by destination, and by both domains: hashes, there may be many
}

// planned returns the day's quota, with the reports that are planned already.
func (p *pass) planned() (*quota, error) {
	q := &quota{most: p.MaxPerDestination, seed: maphash.MakeSeed(), counts: map[uint64]int{}}
	if p.stage == tlsrpt.StageClosed {
		return q, nil // a plan begins
	}
	return q, p.Store.Deliveries(p.day, func(v tlsrpt.Delivery) error {
		for _, r := range v.To {
			if to, err := report.ParseDestination(r.URI); err == nil && r.Kind != tlsrpt.Suppressed {
				q.take(v.Domain, to)
			}
		}
		return nil
	})
}

// take reports whether a report about domain may go to a destination, and counts it.
func (q *quota) take(domain string, to report.Destination) bool {
	target, below := registrable(to.Host), registrable(domain)
	if target == below {
		return true
	}
	all, some := maphash.Comparable(q.seed, [2]string{target}), maphash.Comparable(q.seed, [2]string{target, below})
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.counts[all] >= q.most || q.counts[some] >= maxBelowDomain || len(q.counts) >= maxCounted {
		return false
	}
	q.counts[all]++
	q.counts[some]++
	return true
}

// registrable is the domain that was bought to have name.
func registrable(name string) string {
	domain, err := publicsuffix.EffectiveTLDPlusOne(name)
	if err != nil {
		return name // a public suffix itself
	}
	return domain
}
