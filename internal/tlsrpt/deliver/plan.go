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

// maxDomains bounds the domains of a day that get reports: those with most sessions.
const maxDomains = 100_000

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
			if *v = p.decide(total.Domain); v.Open() == 0 {
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

// ranked returns the domains of the day, those with most sessions first.
func (p *pass) ranked() (all []tlsrpt.Total, err error) {
	domains := 0
	rank := func() {
		slices.SortFunc(all, func(a, b tlsrpt.Total) int {
			return cmp.Or(cmp.Compare(b.Successful+b.Failed, a.Successful+a.Failed), strings.Compare(a.Domain, b.Domain))
		})
		all = all[:min(len(all), maxDomains)]
	}
	err = p.Store.Domains(p.day, func(t tlsrpt.Total) error {
		domains++
		if all = append(all, t); len(all) >= 2*maxDomains {
			rank()
		}
		return p.ctx.Err()
	})
	rank()
	if domains > len(all) {
		p.Log.Warn("TLS reports are left out: the day has too many domains", "day", p.day, "domains", domains-len(all))
	}
	return all, err
}

// decide returns a new delivery: whether there is a report, and when.
func (p *pass) decide(domain string) tlsrpt.Delivery {
	sessions, failed, looked, err := p.sessions(p.day, domain)
	mailed, failing := p.mailed()
	err = errors.Join(err, failing)
	why := ""
	switch {
	case err != nil:
		why = reason(err) // the other domains' reports go out
	case p.Skip(domain):
		why = "skipped by the configuration"
	case p.FailuresOnly && failed == 0:
		why = "no failed session"
	case sessions-min(looked, mailed[domain]) <= mailed[domain]:
		// RFC 8460, 3: a report's own session is not to be in the next report. No MTA says
		// which session that was, so this is what can be known: there were no others, and of
		// failures that our own lookups count, no more than one for each mail. Else two
		// reporters that send each other only reports would go on for ever.
		why = fmt.Sprintf("%d sessions, no more than our %d report mails", sessions, mailed[domain])
	}
	now := p.Now()
	v := tlsrpt.Delivery{Day: p.day, Domain: domain, Next: now, To: []tlsrpt.Receiver{{Kind: tlsrpt.Suppressed, Reason: why, Changed: now}}}
	if why == "" {
		v.To[0].Kind, v.ReportID = tlsrpt.Planned, p.Reporter.NewID(p.day, domain)
		if p.Window > 0 {
			v.Next = now.Add(rand.N(p.Window)) // RFC 8460, 4.1
		}
	}
	return v
}

// sessions counts the sessions of a domain's day, the failed ones among them, and the
// failures that our own lookups count, which come beside the session of a mail.
func (d *Deliverer) sessions(day tlsrpt.Day, domain string) (all, failed, looked uint64, err error) {
	policies, err := d.Store.Brief(day, domain, tlsrpt.MaxDetails)
	for _, s := range policies {
		all += s.Successful + s.Failed
		failed += s.Failed
		for _, d := range s.Details {
			switch d.Failure.Result {
			case tlsrpt.STSPolicyFetchError, tlsrpt.STSPolicyInvalid, tlsrpt.STSWebPKIInvalid:
				looked += d.Sessions
			case tlsrpt.ValidationFailure:
				if d.Failure.Reason == tlsrpt.ReasonMXMismatch {
					looked += d.Sessions
				}
			}
		}
	}
	return all, failed, looked, err
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
func (p *pass) again(old tlsrpt.Delivery) tlsrpt.Delivery {
	v := p.decide(old.Domain)
	if v.Open() == 0 {
		return old
	}
	v.ReportID, v.Next = cmp.Or(old.ReportID, v.ReportID), p.Now()
	for i, r := range old.To {
		if r.Kind != tlsrpt.Accepted && r.Reason != errTooMany.Error() {
			old.To[i] = tlsrpt.Receiver{URI: r.URI, Kind: tlsrpt.Planned, Changed: v.Next}
		}
	}
	if len(old.To) > 0 {
		v.To = old.To
	}
	return v
}
