package observe

import (
	"container/list"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A Failure is the last one of a domain.
type Failure struct {
	Domain string
	Step   keeper.Step
	Result policy.Result
	Reason string // in words that may be a stranger's
	At     time.Time
	Times  int // since the domain came into the list
}

// Failures remember what failed of late. Policies that are held have a list
// apart from strangers, of whom there may be as many as somebody likes: they
// must not crowd out what the operator needs to see.
type Failures struct{ held, strangers recent }

// Observe takes note of what the keeper tried. That a domain without a policy
// has none is no failure; that the record of a held one is gone is.
func (f *Failures) Observe(e keeper.Event) {
	of := &f.held
	if e.Step == keeper.StepDiscovery {
		of = &f.strangers
	}
	switch {
	case e.Result == policy.ResultOK:
		if e.Step != keeper.StepCheck { // a record that is there again says nothing of the policy host
			// In both: a policy may expire and be found anew.
			f.held.drop(e.Domain)
			f.strangers.drop(e.Domain)
		}
	case e.Err != nil && !(e.Step == keeper.StepDiscovery && e.Result == policy.ResultNoRecord):
		of.note(Failure{Domain: e.Domain, Step: e.Step, Result: e.Result, Reason: policy.Reason(e.Err), At: time.Now(), Times: 1})
	}
}

// recent are the last failures of some domains, the latest in front.
type recent struct {
	mu     sync.Mutex
	order  list.List // of Failure
	byName map[string]*list.Element
}

func (r *recent) note(f Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byName == nil {
		r.byName = make(map[string]*list.Element)
	}
	if el := r.byName[f.Domain]; el != nil {
		f.Times += el.Value.(Failure).Times
		el.Value = f
		r.order.MoveToFront(el)
		return
	}
	if r.order.Len() >= maxFailures {
		delete(r.byName, r.order.Remove(r.order.Back()).(Failure).Domain)
	}
	r.byName[f.Domain] = r.order.PushFront(f)
}

// drop is for a domain that is well again.
func (r *recent) drop(domain string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if el := r.byName[domain]; el != nil {
		r.order.Remove(el)
		delete(r.byName, domain)
	}
}

// last returns up to so many, the latest first.
func (r *recent) last(most int) []Failure {
	r.mu.Lock()
	defer r.mu.Unlock()
	var fs []Failure
	for el := r.order.Front(); el != nil && len(fs) < most; el = el.Next() {
		fs = append(fs, el.Value.(Failure))
	}
	return fs
}
