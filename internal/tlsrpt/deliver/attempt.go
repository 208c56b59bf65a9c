package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

const (
	// maxAttempts end 24 hours after the first (RFC 8460, 5.5). Attempts are counted, not
	// hours: a clock that jumps gives up no report.
	maxAttempts   = 8
	maxRetryAfter = 4 * time.Hour // for which a receiver can have us wait
	maxWait       = 24 * time.Hour
)

// pauses are those after each attempt; the last one is repeated.
var pauses = [...]time.Duration{10 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour}

// ErrRefused is wrapped by Config.Mail and Config.Post: an answer that will not change.
var ErrRefused = errors.New("refused")

// A LaterError is a failure of a receiver that says when to try again.
type LaterError struct {
	After time.Duration
	Err   error
}

func (e *LaterError) Error() string { return e.Err.Error() }

// Reasons why a receiver gets no report, beside report.ErrNoRecord.
var (
	errGone       = errors.New("the record no longer names it")
	errSuppressed = errors.New("suppressed by the administrator")
	errTooMany    = errors.New("too many reports go to this receiver: see max_per_destination in [tlsrpt]")
)

// unwanted is why sessions make no report.
type unwanted string

func (u unwanted) Error() string { return string(u) }

// isFinal reports whether err is such a reason.
func isFinal(err error) bool {
	return errors.Is(err, report.ErrNoRecord) || errors.Is(err, errGone) || errors.Is(err, errSuppressed) || errors.Is(err, errTooMany) || errors.As(err, new(unwanted))
}

// A pass is one look at a day.
type pass struct {
	*Deliverer
	ctx        context.Context
	day        tlsrpt.Day
	stage      tlsrpt.Stage
	resend     bool // the administrator has asked for the reports
	suppressed map[string]time.Time
	quota      func() (*quota, error)
	mailed     func() (map[string]uint64, error) // the report mails that we sent that day, by domain
	group      errgroup.Group                    // of domains whose reports are under way

	left atomic.Int64 // reports that stay open
}

// begin returns a pass of a day. It plans a day that is closed.
func (d *Deliverer) begin(ctx context.Context, day tlsrpt.Day) (p *pass, err error) {
	p = &pass{Deliverer: d, ctx: ctx, day: day}
	p.quota = sync.OnceValues(p.planned)
	p.mailed = sync.OnceValues(func() (map[string]uint64, error) { return d.Mailed(day) })
	p.group.SetLimit(sendsAtOnce)
	if p.stage, err = d.Store.Stage(day); err == nil {
		p.suppressed, err = d.Store.Suppressed()
	}
	if err == nil && p.stage == tlsrpt.StageClosed {
		if err = p.plan(); err == nil {
			p.stage, err = tlsrpt.StagePlanned, d.Store.SetStage(day, tlsrpt.StagePlanned)
		}
	}
	return p, err
}

// deliver makes an attempt for the open receivers of a domain in a goroutine, if it is
// due.
func (p *pass) deliver(v tlsrpt.Delivery) {
	if v.Open() == 0 && (p.Fleet == nil || v.To[0].URI == "") {
		return
	}
	p.group.Go(func() error {
		err := p.share(&v)
		// A moment that is too far was set before the clock jumped back.
		if wait := v.Next.Sub(p.Now()); err == nil && v.Open() > 0 && (wait <= 0 || wait > maxWait) {
			err = p.attempt(&v)
		}
		p.left.Add(int64(v.Open()))
		return err
	})
}

// attempt makes one attempt for each open receiver of a domain. The error is from the
// store, or says that ctx has ended.
func (p *pass) attempt(v *tlsrpt.Delivery) (err error) {
	defer recoverInto(&err)
	all, ours := p.turn(v)
	if !ours {
		return p.Store.PutDeliveries(*v)
	}
	destinations, noRecord := p.record(v.Domain)
	if p.ctx.Err() != nil {
		return p.ctx.Err()
	}
	v.Attempts++
	v.Next = p.Now().Add(pauses[min(v.Attempts, len(pauses))-1])
	if err := p.address(v, destinations); err != nil {
		return err
	}
	for i := range v.To {
		r := &v.To[i]
		if !r.Kind.Open() {
			continue
		}
		to, err := p.mayTry(r, destinations)
		if noRecord != nil {
			err = noRecord
		}
		if err == nil {
			r.Kind, r.Changed = tlsrpt.Attempting, p.Now()
			if err := p.Store.PutDeliveries(*v); err != nil { // before the attempt
				return err
			}
			if err = p.send(v, all, to); err != nil && p.ctx.Err() != nil {
				return p.ctx.Err()
			}
		}
		p.settle(v, r, err)
	}
	_ = p.tell(v, all) // first: relays that do not learn of this repeat the report with its id
	return p.Store.PutDeliveries(*v)
}

// address adds to a delivery the destinations of the record that it does not know yet.
func (p *pass) address(v *tlsrpt.Delivery, destinations []report.Destination) error {
	if len(destinations) > 0 && v.To[0].URI == "" {
		v.To = nil
	}
	for _, to := range destinations {
		if len(v.To) >= report.MaxDestinations || slices.ContainsFunc(v.To, func(r tlsrpt.Receiver) bool { return r.URI == to.URI }) {
			continue
		}
		q, err := p.quota()
		if err != nil {
			return err
		}
		v.To = append(v.To, tlsrpt.Receiver{URI: to.URI, Kind: tlsrpt.Planned, Changed: p.Now()})
		if !q.take(v.Domain, to) {
			p.settle(v, &v.To[len(v.To)-1], errTooMany)
		}
	}
	return nil
}

// mayTry returns the destination of a receiver, or why no attempt is made.
func (p *pass) mayTry(r *tlsrpt.Receiver, destinations []report.Destination) (to report.Destination, err error) {
	at := slices.IndexFunc(destinations, func(to report.Destination) bool { return to.URI == r.URI })
	if at < 0 {
		return to, errGone
	}
	if to = destinations[at]; p.suppressed[to.Name()].After(p.Now()) {
		err = errSuppressed
	}
	return to, err
}

// settle takes note of what came of an attempt.
func (p *pass) settle(v *tlsrpt.Delivery, r *tlsrpt.Receiver, err error) {
	r.Kind, r.Reason, r.Changed = tlsrpt.Accepted, "", p.Now()
	if err != nil {
		r.Kind, r.Reason = tlsrpt.Planned, reason(err)
	}
	if later, ok := errors.AsType[*LaterError](err); ok {
		if at := r.Changed.Add(min(later.After, maxRetryAfter)); at.After(v.Next) {
			v.Next = at
		}
	}
	switch {
	case isFinal(err):
		r.Kind = tlsrpt.Suppressed
	case errors.Is(err, ErrRefused):
		r.Kind, r.Reason = tlsrpt.Refused, strings.TrimPrefix(r.Reason, ErrRefused.Error()+": ")
	case err != nil && v.Attempts >= maxAttempts:
		r.Kind = tlsrpt.Expired
	}
	p.Deliverer.mu.Lock()
	p.stats.Reports[r.Kind]++
	if errors.Is(err, errTooMany) {
		p.stats.LeftOut = time.Now()
	}
	p.Deliverer.mu.Unlock()
	next := "no other attempt"
	if r.Kind == tlsrpt.Planned {
		next = "tried again at " + v.Next.UTC().Format(time.RFC3339)
	}
	if err != nil && p.lines.Allow() {
		p.Log.Info("a TLS report was not delivered", "domain", v.Domain, "day", v.Day, "to", r.URI, "err", r.Reason, "next", next)
	}
}

// reason is an error as it is stored.
func reason(err error) string { return text.Cut(text.Printable(err.Error()), maxReasonText) }

// record asks for a domain's TLSRPT record. The error wraps report.ErrNoRecord if the
// answer is that the domain wants no reports.
func (p *pass) record(domain string) (_ []report.Destination, err error) {
	defer recoverInto(&err)
	ctx, cancel := context.WithTimeout(p.ctx, askTime)
	defer cancel()
	answer, err := p.Resolver.Query(ctx, report.RecordName(domain), resolver.TypeTXT)
	if err != nil {
		return nil, err
	}
	return report.FindRecord(answer.Texts)
}

// send hands a report over once.
func (p *pass) send(v *tlsrpt.Delivery, all *sharedReport, to report.Destination) (err error) {
	defer recoverInto(&err)
	text, err := p.compressed(v, all)
	switch {
	case errors.Is(err, report.ErrTooLarge):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case err != nil:
		return err
	}
	if to.Address == "" {
		return p.Post(p.ctx, to.URI, text)
	}
	message, err := p.Reporter.Message(report.Mail{To: to.Address, Day: v.Day, Domain: v.Domain, ID: v.ReportID, Compressed: text, Date: p.Now()})
	if err != nil {
		return err
	}
	return p.Mail(p.ctx, p.Reporter.Sender(), to.Address, message)
}

// compressed returns the report of a delivery, that of the fleet if there is one.
func (p *pass) compressed(v *tlsrpt.Delivery, all *sharedReport) ([]byte, error) {
	p.loading.Lock()
	defer p.loading.Unlock()
	day, err := p.Store.Load(v.Day, v.Domain)
	if err != nil {
		return nil, err
	}
	if all != nil {
		day.Policies = all.summaries()
	}
	if p.Fleet != nil {
		if err := p.wanted(totalOf(v.Domain, day.Policies)); err != nil {
			return nil, err
		}
	}
	return p.Reporter.Build(day, v.ReportID).Compress()
}
