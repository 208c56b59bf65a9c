package reporting

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// This file: all destinations at a glance. -tls, the status page and the metrics agree,
// since they show the same overview.

const (
	overviewDays  = 14 // as many as [tlsrpt] keep has by default
	overviewWorst = 1000
	overviewRows  = 500_000          // policies and details of a day, read of the store
	overviewEvery = 10 * time.Minute // -tls makes one, too
)

// An Overview is the sessions with all destinations in the last 14 days.
type Overview struct {
	At          time.Time
	Days        [overviewDays]tlsrpt.Day // the newest first, as in what follows
	ByDay       [overviewDays]Sessions   // none: nothing is known of the day
	Worst       []Failing                // destinations with failed sessions, by harm, 1,000 at most
	Failed, New int                      // how many there are, and how many have begun to fail
	Complete    bool                     // all destinations were read
}

// Harms are what the policy of failed sessions was, by what that does to mail, the worst first:
//
//	enforced      so is DANE: mail waits, or takes another host
//	not enforced  in testing, or could not be fetched: mail goes on
//	none          mail goes on
var Harms = [...]string{"enforced", "not enforced", "none"}

// Sessions counts sessions, and the failed ones among them by harm.
type Sessions struct {
	All    uint64
	Failed [len(Harms)]uint64
}

// Policies returns the harms of the failed sessions, as words.
func (s Sessions) Policies() string {
	var words []string
	for i, n := range s.Failed {
		if n > 0 {
			words = append(words, Harms[i])
		}
	}
	return strings.Join(words, ", ")
}

// Failures returns the number of failed sessions.
func (s Sessions) Failures() uint64 { return s.Failed[0] + s.Failed[1] + s.Failed[2] }

func (s *Sessions) add(t Sessions) {
	s.All += t.All
	for i, n := range t.Failed {
		s.Failed[i] += n
	}
}

// fail reports whether more than a tenth of the sessions failed, and three at least.
func (s Sessions) fail() bool { return s.Failures() >= 3 && s.Failures() > s.All/10 }

// A Failing is a destination with failed sessions.
type Failing struct {
	Domain string
	Sessions
	ByDay       [overviewDays]Sessions
	Since, Last tlsrpt.Day          // of the failures
	Results     []tlsrpt.ResultType // of the failures
	New         bool                // it has begun to fail
}

// harm returns the place in Harms of a policy's failed sessions. A policy without a mode
// counts as enforced, unless it could not be fetched.
func harm(s *tlsrpt.Summary) int {
	unfetched := func(d tlsrpt.Detail) bool { return strings.HasPrefix(string(d.Result), "sts-") }
	switch {
	case s.Policy.Type == tlsrpt.TypeNone:
		return 2
	case len(s.Policy.Strings) > 0 && s.Policy.Strings[0] != "mode: enforce", slices.ContainsFunc(s.Details, unfetched):
		return 1
	}
	return 0
}

// byHarm is the order of destinations: first those that failed today or yesterday, and of
// these first those with most failed sessions of the worst harm.
func byHarm(a, b Failing) int {
	lately := func(f Failing) uint64 { return min(1, f.ByDay[0].Failures()+f.ByDay[1].Failures()) }
	return cmp.Or(cmp.Compare(lately(b), lately(a)), slices.Compare(b.Failed[:], a.Failed[:]), strings.Compare(a.Domain, b.Domain))
}

// begun reports whether a destination has begun to fail: it fails on its last day, which is
// today or yesterday, and did not before yesterday, but had sessions that succeeded.
func (f *Failing) begun() bool {
	last := f.ByDay[0]
	if last.All == 0 {
		last = f.ByDay[1]
	}
	return last.fail() && f.Failures() < f.All && !slices.ContainsFunc(f.ByDay[2:], Sessions.fail)
}

// Overview returns the last overview, or a new one of all that was written.
func (s *Service) Overview(anew bool) (o Overview, err error) {
	st, err := s.opened()
	if err == nil && anew {
		if err = st.Merge(); err == nil {
			err = s.look(st)
		}
	}
	if err != nil {
		return o, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.overview.At.IsZero() {
		err = errNotOpen
	}
	return s.overview, err
}

// keepLooking makes overviews of what is merged, until ctx ends.
func (s *Service) keepLooking(ctx context.Context) error {
	for {
		if err := s.look(s.store); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(overviewEvery):
		}
	}
}

// look makes an overview.
func (s *Service) look(st *store.Store) (err error) {
	o := Overview{At: s.Now()}
	for i := range o.Days {
		o.Days[i] = tlsrpt.DayOf(o.At.UTC().AddDate(0, 0, -i))
	}
	cut := func() {
		slices.SortFunc(o.Worst, byHarm)
		o.Worst = o.Worst[:min(len(o.Worst), overviewWorst)]
	}
	rows := 0
	o.Complete, err = st.EachDomain(o.Days[:], "", func(domain string, byDay [][]tlsrpt.Summary) bool {
		f := Failing{Domain: domain}
		for i, policies := range byDay {
			for _, p := range policies {
				f.count(i, o.Days[i], &p)
				rows += 1 + len(p.Details)
			}
			o.ByDay[i].add(f.ByDay[i])
		}
		more := rows < overviewRows
		if f.Failures() == 0 {
			return more
		}
		slices.Sort(f.Results)
		f.Results = slices.Compact(f.Results)
		o.Failed++
		if f.New = f.begun(); f.New {
			o.New++
		}
		if o.Worst = append(o.Worst, f); len(o.Worst) == 2*overviewWorst {
			cut()
		}
		return more
	})
	if err != nil {
		return err
	}
	cut()
	s.works("destinations", func() { s.overview = o })
	return nil
}

// count adds a policy's day, which is older than those before.
func (f *Failing) count(i int, day tlsrpt.Day, p *tlsrpt.Summary) {
	s := Sessions{All: p.Successful + p.Failed}
	if p.Failed > 0 {
		s.Failed[harm(p)] = p.Failed
		f.Since, f.Last = day, cmp.Or(f.Last, day)
	}
	for _, d := range p.Details {
		f.Results = append(f.Results, d.Result)
	}
	f.ByDay[i].add(s)
	f.Sessions.add(s)
}
