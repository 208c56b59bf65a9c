package deliver

import (
	"cmp"
	"context"
	"hash/maphash"
	"slices"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

const (
	maxBelowDomain = 10      // reports a day to one destination for the domains below one registrable domain
	maxRanked      = 500_000 // destinations of a day outside their domains, 32 bytes each; others get no report
)

// rank suppresses the reports of a day that would be too many for their destination: at
// most MaxPerDestination go to the registrable domain of a destination for policy domains
// outside it, at most maxBelowDomain of them for those below one registrable domain. The
// domains with most sessions go first, after those that were tried already.
func (d *Deliverer) rank(ctx context.Context, day tlsrpt.Day) error {
	r := ranking{seed: maphash.MakeSeed(), most: d.MaxPerDestination, targets: map[uint64][]ranked{}, leftOut: map[uint64]bool{}}
	for rows, err := range d.domains(ctx, day) {
		if err != nil {
			return err
		}
		for _, row := range rows {
			r.add(row)
		}
	}
	if r.decide(); len(r.leftOut) == 0 {
		return nil
	}
	var out []tlsrpt.State
	for rows, err := range d.domains(ctx, day) {
		for _, row := range rows {
			if r.leftOut[r.hash(row.Key())] {
				out = append(out, closed(row, tlsrpt.Suppressed, "too many reports for this destination (max_per_destination)"))
			}
		}
		if err == nil && len(out) >= page {
			err = d.writer.put(out...)
			out = nil
		}
		if err != nil {
			return err
		}
	}
	if err := d.writer.put(out...); err != nil {
		return err
	}
	d.mu.Lock()
	d.stats.Reports[tlsrpt.Suppressed] += uint64(len(r.leftOut))
	d.stats.LeftOut += uint64(len(r.leftOut))
	d.mu.Unlock()
	d.Log.Warn("TLS reports are left out: too many domains name the same destination", "day", day, "reports", len(r.leftOut),
		"next", "if it is a service that you trust, raise max_per_destination in [tlsrpt]")
	return nil
}

// A ranking collects the destinations of a day that are outside their domains. Names
// are kept as hashes: there may be millions.
type ranking struct {
	seed    maphash.Seed
	most    int
	size    int
	targets map[uint64][]ranked // by the registrable domain of the destination
	leftOut map[uint64]bool     // by the key of the row
}

type ranked struct {
	key, below uint64 // of the row; the registrable policy domain
	sessions   uint64
	tried      bool
}

func (r *ranking) hash(s string) uint64 { return maphash.String(r.seed, s) }

// add adds a row if it counts.
func (r *ranking) add(row tlsrpt.State) {
	to, err := report.ParseDestination(row.Destination)
	target, below := registrable(to.Host), registrable(row.Domain)
	if err != nil || row.Kind == tlsrpt.Suppressed || target == below {
		return
	}
	entry := ranked{r.hash(row.Key()), r.hash(below), row.Sessions, row.Kind != tlsrpt.Planned || row.Attempts > 0}
	if r.size++; r.size > maxRanked && !entry.tried {
		r.leftOut[entry.key] = true
		return
	}
	r.targets[r.hash(target)] = append(r.targets[r.hash(target)], entry)
}

// decide fills leftOut.
func (r *ranking) decide() {
	for _, rows := range r.targets {
		slices.SortFunc(rows, func(a, b ranked) int {
			if a.tried != b.tried {
				return map[bool]int{true: -1, false: 1}[a.tried]
			}
			return cmp.Or(cmp.Compare(b.sessions, a.sessions), cmp.Compare(a.key, b.key))
		})
		taken, below := 0, map[uint64]int{}
		for _, row := range rows {
			if !row.tried && (taken >= r.most || below[row.below] >= maxBelowDomain) {
				r.leftOut[row.key] = true
				continue
			}
			taken++
			below[row.below]++
		}
	}
}
