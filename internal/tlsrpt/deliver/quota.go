package deliver

import (
	"context"
	"hash/maphash"
	"slices"

	"golang.org/x/net/publicsuffix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// A quota limits the reports of a day that third parties get: at most MaxPerDestination
// go to the registrable domain of a destination for policy domains outside it, at most
// maxBelowDomain of them for those below one registrable domain. Who comes first has it.
type quota struct {
	most    int
	seed    maphash.Seed
	counts  map[uint64]int // by a hash of destination, or of destination and policy domain: there may be many
	leftOut int
}

// newQuota returns a day's quota, with the reports that are planned already.
func (d *Deliverer) newQuota(ctx context.Context, day tlsrpt.Day) (*quota, error) {
	q := &quota{most: d.MaxPerDestination, seed: maphash.MakeSeed(), counts: map[uint64]int{}}
	for rows, err := range d.domains(ctx, day) {
		if err != nil {
			return nil, err
		}
		for _, row := range rows[1:] {
			if to, err := report.ParseDestination(row.Destination); err == nil && row.Kind != tlsrpt.Suppressed {
				q.take(row.Domain, to)
			}
		}
	}
	q.leftOut = 0 // by an earlier, higher limit
	return q, nil
}

// take reports whether a report about domain may go to a destination, and counts it.
func (q *quota) take(domain string, to report.Destination) bool {
	target, below := registrable(to.Host), registrable(domain)
	if target == below {
		return true
	}
	all, some := maphash.Comparable(q.seed, [2]string{target}), maphash.Comparable(q.seed, [2]string{target, below})
	if q.counts[all] >= q.most || q.counts[some] >= maxBelowDomain || len(q.counts) >= maxCounted {
		q.leftOut++
		return false
	}
	q.counts[all]++
	q.counts[some]++
	return true
}

// destined adds to a domain's rows those of destinations that have none yet.
func (q *quota) destined(rows []tlsrpt.State, destinations []report.Destination) []tlsrpt.State {
	for _, to := range destinations {
		if len(rows) > report.MaxDestinations || known(rows, to) {
			continue
		}
		row := rows[0]
		row.Destination, row.Kind, row.Reason = to.URI, tlsrpt.Planned, ""
		if !q.take(row.Domain, to) {
			row = closed(row, tlsrpt.Suppressed, "too many reports for this destination (max_per_destination)")
		}
		rows = append(rows, row)
	}
	if len(rows) > 1 {
		rows[0].Kind, rows[0].Reason = tlsrpt.Attempting, ""
		rows[0] = concluded(rows)
	}
	return rows
}

// known reports whether a destination has a row.
func known(rows []tlsrpt.State, to report.Destination) bool {
	return slices.ContainsFunc(rows, func(row tlsrpt.State) bool { return row.Destination == to.URI })
}

// tellLeftOut counts and logs what was left out.
func (d *Deliverer) tellLeftOut(day tlsrpt.Day, q *quota) {
	if q.leftOut == 0 {
		return
	}
	d.mu.Lock()
	d.stats.Reports[tlsrpt.Suppressed] += uint64(q.leftOut)
	d.stats.LeftOut += uint64(q.leftOut)
	d.mu.Unlock()
	d.Log.Warn("TLS reports are left out: too many domains name the same destination", "day", day, "reports", q.leftOut,
		"next", "if it is a service that you trust, raise max_per_destination in [tlsrpt]")
}

// registrable is the domain that was bought to have name.
func registrable(name string) string {
	domain, err := publicsuffix.EffectiveTLDPlusOne(name)
	if err != nil {
		return name // a public suffix itself
	}
	return domain
}
