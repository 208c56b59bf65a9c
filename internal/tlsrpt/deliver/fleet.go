package deliver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// This file: one report of all relays of a fleet. Each relay puts its sessions of a closed
// day to the engine. At a moment that is the same for all, one of them gets a lease, adds
// up what is there, puts the sum with the names of these relays, and delivers it. A relay
// that is not named there reports by itself: no session is lost or counted twice, whatever
// the engine has lost or refused. So does a relay that waits in vain; if the engine has had
// its sessions, they may be counted twice.

// The bounds of a fleet's reports.
const (
	shareWait       = time.Hour        // after a day's end: all relays that run have put their sessions
	leaseTime       = 30 * time.Minute // an attempt takes half of it at most
	maxToldAttempts = 1 << 16          // attempts that a relay may tell of, -report -send included
	maxShared       = 128 << 10        // bytes of a relay's sessions with a domain; with more it reports them by itself
)

// What relays put for a domain's day.
const (
	fleetSessions = "r"  // by relay: a report's policies
	fleetReport   = "rs" // in one field of the same name: a sharedReport
)

// A Fleet is the engine; *fleet.Fleet is one. What it returns was put by a relay. Each call
// ends within seconds.
type Fleet interface {
	PutReport(ctx context.Context, kind, day, domain, field, content string, keep time.Duration) error
	Report(ctx context.Context, kind, day, domain string) (map[string]string, error)
	LeaseDelivery(ctx context.Context, day, domain, relay string, long time.Duration) (ours bool, err error)
}

// A sharedReport is the fleet's report, how far it is, and of which relays it has the
// sessions.
type sharedReport struct {
	tlsrpt.Delivery
	Relays   []string        `json:"relays"`
	Policies []report.Result `json:"policies"`
}

// moment returns when this relay looks at a domain's report: when all do, but for some
// minutes, so that most of them find it delivered.
func (p *pass) moment(domain string) time.Time {
	hash := fnv.New64a()
	fmt.Fprint(hash, p.Reporter.Sender(), p.day, domain)
	drawn := time.Duration(hash.Sum64() % uint64(max(p.Window, 1)))
	return p.day.End().Add(shareWait + drawn + rand.N(pauses[0]))
}

// share puts this relay's sessions with a domain, once.
func (p *pass) share(v *tlsrpt.Delivery) (err error) {
	defer recoverInto(&err)
	if p.Fleet == nil || v.Shared || v.Alone {
		return nil
	}
	policies, err := p.own(v.Domain)
	v.Alone = len(policies) > maxShared || p.Now().After(p.deadline())
	v.Shared = !v.Alone && err == nil && p.put(v.Domain, fleetSessions, p.Relay, policies) == nil
	if !v.Alone && !v.Shared {
		return nil // tried again in a minute
	}
	return p.Store.PutDeliveries(*v)
}

// own returns this relay's sessions with a domain, as JSON.
func (p *pass) own(domain string) ([]byte, error) {
	p.loading.Lock()
	defer p.loading.Unlock()
	day, err := p.Store.Load(p.day, domain)
	if err != nil {
		return nil, err
	}
	return json.Marshal(p.Reporter.Build(day, "").Policies)
}

// deadline returns until when this relay waits for the fleet's report.
func (p *pass) deadline() time.Time { return p.day.End().Add(shareWait + p.Window + 4*leaseTime) }

func (p *pass) put(domain, kind, field string, content []byte) error {
	return p.Fleet.PutReport(p.ctx, kind, string(p.day), domain, field, string(content), p.day.End().Add(tooLate).Sub(p.Now()))
}

// turn reports whether this relay is to make an attempt now, and for which report; nil: that
// of its own sessions.
func (p *pass) turn(v *tlsrpt.Delivery) (all *sharedReport, ours bool) {
	if p.Fleet == nil || v.Alone {
		return nil, true
	}
	last := p.deadline()
	all, err := p.told(v.Domain)
	switch {
	case all != nil && !slices.Contains(all.Relays, p.Relay):
		v.Alone, v.Shared, v.ReportID = true, false, p.Reporter.NewID(p.day, v.Domain) // an earlier one may be the fleet's
		return nil, true
	case all != nil:
		last = last.Add(maxWait) // for its retries
		if !p.resend || v.ReportID != all.ReportID {
			all.Attempts = max(all.Attempts, v.Attempts) // the engine may play an old one back
			*v = all.Delivery
			v.Shared, v.Alone = true, false
		}
		if v.Open() == 0 || v.Next.After(p.Now()) {
			return nil, false
		}
	case err == nil && (!v.Shared || p.Now().After(last.Add(-leaseTime))):
		err = errors.New("the fleet's engine was away")
	}
	if err == nil {
		ours, err = p.Fleet.LeaseDelivery(p.ctx, string(p.day), v.Domain, p.Relay, leaseTime)
	}
	lost := false
	if err == nil && ours && all == nil {
		if all, err = p.merged(v.Domain); err == nil && !slices.Contains(all.Relays, p.Relay) {
			lost = true // the engine no longer has what this relay has put
		} else if err == nil {
			err = p.tell(v, all)
		}
	}
	switch {
	case err == nil && ours && !lost:
		return all, true
	case lost || p.Now().After(last):
		v.Alone, v.ReportID, v.Attempts = true, p.Reporter.NewID(p.day, v.Domain), 0
		return nil, true
	case err == nil:
		err = errors.New("another relay of the fleet delivers it")
	}
	v.Next = p.Now().Add(pauses[0])
	for i := range v.To {
		if v.To[i].Kind.Open() {
			v.To[i].Reason = reason(err)
		}
	}
	return nil, false
}

var reportID = regexp.MustCompile(`^[0-9a-z._@-]{1,600}$`)

// told returns the fleet's report; nil: it has not begun.
func (p *pass) told(domain string) (*sharedReport, error) {
	p.loading.Lock() // a lying engine's reply has some MiB
	defer p.loading.Unlock()
	fields, err := p.Fleet.Report(p.ctx, fleetReport, string(p.day), domain)
	if err != nil || fields[fleetReport] == "" {
		return nil, err
	}
	all := new(sharedReport)
	if json.Unmarshal([]byte(fields[fleetReport]), all) != nil || all.Day != p.day || all.Domain != domain || !reportID.MatchString(all.ReportID) ||
		all.Attempts < 0 || all.Attempts > maxToldAttempts || all.Next.Sub(p.Now()) > maxWait || len(all.To) == 0 || len(all.To) > report.MaxDestinations {
		return nil, errors.New("the fleet's report cannot be read")
	}
	return all, nil
}

// tell puts how far the fleet's report is.
func (p *pass) tell(v *tlsrpt.Delivery, all *sharedReport) error {
	if all == nil {
		return nil
	}
	all.Delivery = *v
	content, err := json.Marshal(all)
	if err == nil {
		err = p.put(v.Domain, fleetReport, fleetReport, content)
	}
	return err
}

// merged adds up what relays have put for a domain. It passes over what cannot be read: a
// relay that is not named reports by itself.
func (p *pass) merged(domain string) (*sharedReport, error) {
	p.loading.Lock()
	defer p.loading.Unlock()
	fields, err := p.Fleet.Report(p.ctx, fleetSessions, string(p.day), domain)
	all, at := new(sharedReport), make(map[string]int) // by policy
	for _, relay := range slices.Sorted(maps.Keys(fields)) {
		var policies []report.Result
		if len(fields[relay]) > maxShared || json.Unmarshal([]byte(fields[relay]), &policies) != nil {
			continue
		}
		all.Relays = append(all.Relays, relay)
		for _, one := range policies {
			key, _ := json.Marshal(one.Policy)
			i, ok := at[string(key)]
			if !ok {
				i = len(all.Policies)
				at[string(key)], all.Policies = i, append(all.Policies, report.Result{Policy: one.Policy})
			}
			sum := &all.Policies[i]
			sum.Summary.Successful += one.Summary.Successful
			sum.Summary.Failed += one.Summary.Failed
			for _, d := range one.Details {
				sum.Details = tlsrpt.Count(sum.Details, d.Failure, d.Sessions, false)
			}
		}
	}
	return all, err
}

// summaries returns the sessions of the report.
func (r *sharedReport) summaries() (list []tlsrpt.Summary) {
	for _, one := range r.Policies {
		list = append(list, tlsrpt.Summary{Policy: one.Policy, Successful: one.Summary.Successful, Failed: one.Summary.Failed, Details: one.Details})
	}
	return list
}
