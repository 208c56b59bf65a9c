package deliver

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// The domains of a day that get reports, in all and below one registrable domain: those
// with most sessions.
const (
	maxDomains = 100_000
	maxBelow   = 1000
)

// plan stores a delivery of each domain of a day: whether there is a report, where to, and
// when. It begins with the domains that have most sessions: they come first where a
// receiver is named by too many. A plan that was cut off has sent nothing, and is made
// again.
func (p *pass) plan() error {
	ranked, err := p.ranked()
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(ranked, page) {
		batch := make([]tlsrpt.Delivery, len(chunk))
		records := make([][]report.Destination, len(chunk))
		var group errgroup.Group
		group.SetLimit(asksAtOnce)
		for i, total := range chunk {
			v := &batch[i]
			if *v = p.decide(total); v.Open() == 0 {
				continue
			}
			group.Go(func() (err error) {
				own := &v.To[0]
				if records[i], err = p.record(v.Domain); err != nil {
					own.Reason = reason(err) // it is asked for again when the report is due
				}
				if isFinal(err) {
					own.Kind = tlsrpt.Suppressed
				}
				return p.ctx.Err()
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		for i := range batch {
			if err := p.address(&batch[i], records[i]); err != nil {
				return err
			}
		}
		if err := p.Store.PutDeliveries(batch...); err != nil {
			return err
		}
	}
	return nil
}

// A total is the sessions of a domain's day.
type total struct {
	domain      string
	all, failed uint64
	lookups     uint64 // failures that our own lookups count, which come beside the session of a mail
}

func totalOf(domain string, policies []tlsrpt.Summary) total {
	t := total{domain: domain}
	for _, s := range policies {
		t.all += s.Successful + s.Failed
		t.failed += s.Failed
		for _, d := range s.Details {
			switch d.Failure.Result {
			case tlsrpt.STSPolicyFetchError, tlsrpt.STSPolicyInvalid, tlsrpt.STSWebPKIInvalid:
				t.lookups += d.Sessions
			case tlsrpt.ValidationFailure:
				if d.Failure.Reason == tlsrpt.ReasonMXMismatch {
					t.lookups += d.Sessions
				}
			}
		}
	}
	return t
}

// ranked returns the domains of the day, those with most sessions first.
func (p *pass) ranked() (all []total, err error) {
	domains := 0
	rank := func() {
		slices.SortFunc(all, func(a, b total) int {
			return cmp.Or(cmp.Compare(b.all, a.all), strings.Compare(a.domain, b.domain))
		})
		below := map[string]int{}
		all = slices.DeleteFunc(all, func(t total) bool {
			owner := registrable(t.domain)
			below[owner]++
			return below[owner] > maxBelow
		})
		all = all[:min(len(all), maxDomains)]
	}
	_, err = p.Store.EachDomain([]tlsrpt.Day{p.day}, "", func(domain string, byDay [][]tlsrpt.Summary) bool {
		domains++
		if all = append(all, totalOf(domain, byDay[0])); len(all) >= maxDomains/4*5 {
			rank()
		}
		return p.ctx.Err() == nil
	})
	rank()
	if domains > len(all) {
		p.Log.Warn("TLS reports are left out: the day has too many domains, or too many below one", "day", p.day, "domains", domains-len(all))
	}
	return all, cmp.Or(err, p.ctx.Err())
}

// decide returns a new delivery: whether there is a report, and when.
func (p *pass) decide(t total) tlsrpt.Delivery {
	why := ""
	if p.Skip(t.domain) {
		why = "skipped by the configuration"
	} else if p.Fleet == nil { // else the sessions of all relays decide
		if err := p.wanted(t); err != nil {
			why = reason(err)
		}
	}
	now := p.Now()
	v := tlsrpt.Delivery{Day: p.day, Domain: t.domain, Next: now, To: []tlsrpt.Receiver{{Kind: tlsrpt.Suppressed, Reason: why, Changed: now}}}
	if why == "" {
		v.To[0].Kind, v.ReportID = tlsrpt.Planned, p.Reporter.NewID(p.day, t.domain)
		if p.Window > 0 {
			v.Next = now.Add(rand.N(p.Window)) // RFC 8460, 4.1
		}
		if p.Fleet != nil {
			v.Next = p.moment(t.domain)
		}
	}
	return v
}

// wanted returns an unwanted if these sessions make no report.
func (p *pass) wanted(t total) error {
	counts, err := p.mailed()
	mailed := counts[t.domain]
	switch {
	case err != nil:
		return err
	case p.FailuresOnly && t.failed == 0:
		return unwanted("no failed session")
	case t.all-min(t.lookups, mailed) <= mailed:
		// RFC 8460, 3: a report's own session is not to be in the next report. No MTA says
		// which session that was, so this is what can be known: there were no others, and of
		// failures that our own lookups count, no more than one for each mail. Else two
		// reporters that send each other only reports would go on for ever.
		return unwanted(fmt.Sprintf("%d sessions, no more than our %d report mails", t.all, mailed))
	}
	return nil
}

// Mailed counts the report mails that we handed over on a day, by the domain they went to.
func (d *Deliverer) Mailed(day tlsrpt.Day) (map[string]uint64, error) {
	days, err := d.Store.Days()
	count := map[string]uint64{}
	for _, reported := range days {
		if reported >= day {
			break // reports of a day are sent after it
		}
		err = errors.Join(err, d.Store.Deliveries(reported, func(v tlsrpt.Delivery) error {
			for _, r := range v.To {
				address, mail := strings.CutPrefix(r.URI, "mailto:")
				if mail && r.Kind == tlsrpt.Accepted && tlsrpt.DayOf(r.Changed) == day {
					count[address[strings.IndexByte(address, '@')+1:]]++
				}
			}
			return nil
		}))
	}
	return count, err
}

// again returns a delivery as if no attempt had been made but those that were accepted.
func (p *pass) again(old tlsrpt.Delivery) (tlsrpt.Delivery, error) {
	policies, err := p.Store.Brief(p.day, old.Domain, tlsrpt.MaxDetails)
	if err != nil || len(policies) == 0 {
		return old, cmp.Or(err, ErrNoData)
	}
	v := p.decide(totalOf(old.Domain, policies))
	if v.Open() == 0 {
		return old, nil
	}
	v.ReportID, v.Next, v.Shared, v.Alone = cmp.Or(old.ReportID, v.ReportID), p.Now(), old.Shared, old.Alone
	for i, r := range old.To {
		if r.Kind != tlsrpt.Accepted && r.Reason != errTooMany.Error() {
			old.To[i] = tlsrpt.Receiver{URI: r.URI, Kind: tlsrpt.Planned, Changed: v.Next}
		}
	}
	if len(old.To) > 0 {
		v.To = old.To
	}
	return v, nil
}
