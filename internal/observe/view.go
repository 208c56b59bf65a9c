package observe

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A view is what the template needs for one request.
type view struct {
	*overview
	Question string // as asked
	Answer   *answer
}

// An overview is what all who ask see.
type overview struct {
	at time.Time

	Version, Host, Now, Up string
	Troubles               []control.Trouble
	Policies               int64
	Modes                  []mode
	Read                   int // policies behind the plots
	ReadAll                bool
	ReadError              string
	Due                    *chart
	Later                  int64
	Lives                  []share
	Busy                   []busy
	Held, Strangers        []failure
}

// A mode is how many policies are of it.
type mode struct {
	Name, Class string
	Count       int64
	X, Width    float64 // of the bar, in percent
}

// A share is a row of a plot that lies on its side.
type share struct {
	Name  string
	Count int64
	Width float64 // in percent of the longest
}

// A busy domain, and the mode of the policy that is held of it.
type busy struct {
	Domain, Percent, Mode string
	Width                 float64
}

// A failure, with the words that go with it.
type failure struct {
	Failure
	When, Tried string
}

// overview returns what was gathered last, or gathers anew. One does that at a
// time; the others wait for it.
func (p *Page) overview() *overview {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.Now()
	if p.last != nil {
		if since := now.Sub(p.last.at); since >= 0 && since < keepFor {
			return p.last
		}
	}
	p.last = p.gather(now)
	return p.last
}

func (p *Page) gather(now time.Time) *overview {
	stats := p.Cache()
	o := &overview{
		at: now, Version: p.Version, Host: p.Host, Now: now.Local().Format("2006-01-02 15:04:05 MST"), Up: explain.Span(now.Sub(p.Started)),
		Troubles: p.Troubles(), Policies: stats.Policies(), Modes: modes(stats), Busy: p.busy(),
		Held: p.failures(&p.Failures.held, now), Strangers: p.failures(&p.Failures.strangers, now),
	}
	s, err := draw(p.Keeper.List, o.Policies, now)
	if err != nil {
		o.ReadError = err.Error()
		return o
	}
	o.Read, o.ReadAll, o.Later, o.Due = s.read, s.all, s.later, dueChart(s, now)
	longest := int64(1)
	for _, n := range s.lives {
		longest = max(longest, n)
	}
	for i, n := range s.lives {
		o.Lives = append(o.Lives, share{Name: lives[i].name, Count: n, Width: 100 * float64(n) / float64(longest)})
	}
	return o
}

// modes are the policies by mode, those that protect most first.
func modes(s cache.Stats) []mode {
	list := make([]mode, 0, len(s.ByMode))
	total := max(s.Policies(), 1)
	x := 0.0
	for m := policy.ModeEnforce; ; m-- {
		n := mode{Name: m.String(), Class: m.String(), Count: s.ByMode[m], X: x}
		if m == 0 {
			n.Name, n.Class = "unreadable", "unreadable"
		}
		n.Width = 100 * float64(n.Count) / float64(total)
		x += n.Width
		if m != 0 || n.Count > 0 {
			list = append(list, n)
		}
		if m == 0 {
			return list
		}
	}
}

func (p *Page) busy() []busy {
	domains := p.Keeper.Busiest(shownBusy)
	list := make([]busy, 0, len(domains))
	for _, d := range domains {
		b := busy{Domain: d.Domain, Percent: fmt.Sprintf("%.1f %%", 100*d.Share), Width: 100 * d.Share / domains[0].Share}
		r, err := p.Keeper.Get(d.Domain)
		var damaged *cache.DamagedError
		switch {
		case err == nil:
			b.Mode = r.Mode.String()
		case errors.As(err, &damaged):
			b.Mode = "unreadable"
		}
		list = append(list, b)
	}
	return list
}

// steps are what was tried, in words.
var steps = map[keeper.Step]string{
	keeper.StepDiscovery: "discovery",
	keeper.StepCheck:     "TXT record",
	keeper.StepFetch:     "fetch",
}

func (p *Page) failures(of *recent, now time.Time) []failure {
	var list []failure
	for _, f := range of.last(shownFailures) {
		list = append(list, failure{Failure: f, When: explain.When(f.At, now), Tried: steps[f.Step]})
	}
	return list
}

// An answer is what the box says.
type answer struct {
	Wrong string // why there is none
	*explain.HeldReport
}

// answer explains a next-hop, or the domain of a mail address.
func (p *Page) answer(question string) *answer {
	key := strings.TrimSpace(question)
	key = key[strings.LastIndexByte(key, '@')+1:]
	hop, kind := mta.ParseKey([]byte(key), nil)
	if kind != mta.KeyPolicyDomain {
		return &answer{Wrong: "This is " + kind.String() + ". Ask for the domain of a recipient, or the name of a smart host."}
	}
	domain := string(hop.Domain)
	h, err := p.Held(domain)
	switch {
	case err != nil:
		p.Log.Error("the status page cannot read the cache", "domain", domain, "err", err)
		return &answer{Wrong: "The cache cannot be read; the log says why."}
	case h.Nothing():
		return &answer{Wrong: "Nothing is held of " + explain.Printable(domain) + ". The next lookup of a mail server finds out whether it has a policy. " +
			"This page asks nobody; sts-tlsmap -explain " + explain.Printable(domain) + " does."}
	}
	return &answer{HeldReport: explain.FromHeld(&h, p.Table, p.Now())}
}
