package observe

import (
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

const (
	maxFailures   = 50 // domains remembered for their failures, in each of two lists
	shownFailures = 10 // of them on the page
)

// A failure is the last one of a domain.
type failure struct {
	Domain string
	Step   keeper.Step
	Result policy.Result
	Reason string // may be a stranger's words
	At     time.Time
	Ago    string // as of a page
	Times  int    // since the domain came into the list
}

// failures are the recent failures. Domains without a policy here have a list of their
// own: an attacker can invent any number of them, and must not displace failures of
// held policies.
type failures struct {
	mu              sync.Mutex
	held, strangers *simplelru.LRU[string, failure]
}

func newFailures() failures {
	return failures{held: newRecent(), strangers: newRecent()}
}

func newRecent() *simplelru.LRU[string, failure] {
	l, _ := simplelru.NewLRU[string, failure](maxFailures, nil) // fails for a size below one
	return l
}

// note adds a failure, or drops the failures of a domain whose policy was fetched. A
// missing record is a failure only for a held policy. Busy says nothing of the domain.
func (f *failures) note(e keeper.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.held
	if e.Step == keeper.StepDiscovery {
		list = f.strangers
	}
	switch {
	case e.Result == policy.ResultOK && e.Step != keeper.StepCheck: // a TXT record says nothing of the policy host
		f.held.Remove(e.Domain)
		f.strangers.Remove(e.Domain)
	case e.Result == policy.ResultBusy:
	case e.Err != nil && !(e.Step == keeper.StepDiscovery && e.Result == policy.ResultNoRecord):
		before, _ := list.Peek(e.Domain)
		list.Add(e.Domain, failure{
			Domain: e.Domain, Step: e.Step, Result: e.Result, Reason: policy.Reason(e.Err), At: time.Now(), Times: before.Times + 1,
		})
	}
}

// latest returns the latest failures of each list, the last one first.
func (f *failures) latest(now time.Time) (held, strangers []failure) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return latest(f.held, now), latest(f.strangers, now)
}

func latest(l *simplelru.LRU[string, failure], now time.Time) []failure {
	all := l.Values() // from the oldest
	slices.Reverse(all)
	all = all[:min(len(all), shownFailures)]
	for i := range all {
		all[i].Ago = text.When(all[i].At, now)
	}
	return all
}
