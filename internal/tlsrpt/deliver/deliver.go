// Package deliver plans and delivers TLS reports (RFC 8460, 4.1 and 5.3 to 5.5): it asks
// for the records of a closed day's domains, draws a moment for each, and hands the
// reports over by mail or HTTPS, with retries for a day. How far each is stands in the
// store before and after each attempt. A record is unauthenticated text of a stranger:
// it cannot aim many reports at a third party. It can hold up others a little: that is
// bounded by the time of an attempt, and by maxBelow.
//
// Left out: the form of a report (package report), and its way once an MTA has it.
package deliver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// The bounds of planning and delivery.
const (
	pace          = time.Minute      // between two looks at what is due
	page          = 1000             // domains planned at once
	closesAfter   = 10 * time.Minute // a day's end, the store closes the day
	tooLate       = 96 * time.Hour   // after a day's end, Run plans no reports of it: nobody reported then
	asksAtOnce    = 64               // records asked for while a day is planned
	sendsAtOnce   = 16               // domains whose reports are under way
	askTime       = 10 * time.Second // for a record
	linesASecond  = 5                // log lines about single reports
	maxReasonText = 300              // bytes of a Receiver's Reason
)

// A Store holds the days and how far their reports are; *store.Store is one. The
// functions that it is given may write to it.
type Store interface {
	Days() ([]tlsrpt.Day, error) // that hold data, oldest first
	Stage(tlsrpt.Day) (tlsrpt.Stage, error)
	SetStage(tlsrpt.Day, tlsrpt.Stage) error

	// EachDomain calls each with each domain of the days behind after, in order, while it
	// wants more, and with its summaries of each day.
	EachDomain(days []tlsrpt.Day, after string, each func(domain string, byDay [][]tlsrpt.Summary) (more bool)) (whole bool, err error)
	Load(day tlsrpt.Day, domain string) (tlsrpt.DomainDay, error)
	// Brief is Load without the text of policies.
	Brief(day tlsrpt.Day, domain string, details int) ([]tlsrpt.Summary, error)

	// Deliveries calls f with each delivery of a day until f fails.
	Deliveries(day tlsrpt.Day, f func(tlsrpt.Delivery) error) error
	Delivery(day tlsrpt.Day, domain string) (tlsrpt.Delivery, error) // zero: there is none
	PutDeliveries(...tlsrpt.Delivery) error                          // all or none; on disk when it returns
	Suppressed() (map[string]time.Time, error)                       // by report.Destination.Name, until when
}

// A Config holds what a Deliverer needs.
type Config struct {
	Store    Store
	Resolver policy.Resolver
	Reporter *report.Reporter

	// Mail hands a message over, and Post a compressed report; see SMTP, Sendmail and
	// HTTPS. They must return in time. See ErrRefused.
	Mail func(ctx context.Context, from, to string, message []byte) error
	Post func(ctx context.Context, url string, compressed []byte) error

	Window            time.Duration            // in which the reports of a day are spread (RFC 8460, 4.1)
	MaxPerDestination int                      // see quota
	FailuresOnly      bool                     // no report of a day without a failed session
	Skip              func(domain string) bool // whether a domain gets no report; nil: none
	Fleet             Fleet                    // nil: there is none
	Relay             string                   // a random name of this relay in the fleet
	Now               func() time.Time         // the clock of the store; nil: time.Now
	Log               *slog.Logger
}

// A Deliverer delivers reports. Run is called once, the other methods at any time.
type Deliverer struct {
	Config
	lines   *rate.Limiter
	turn    chan struct{} // holds a value while Run or Send works
	loading sync.Mutex    // held while a report is built: that of a hostile day has 40 MB

	mu    sync.Mutex
	stats Stats
}

// New returns a deliverer.
func New(config Config) *Deliverer {
	if config.Skip == nil {
		config.Skip = func(string) bool { return false }
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Deliverer{
		Config: config, lines: rate.NewLimiter(linesASecond, linesASecond), turn: make(chan struct{}, 1),
		stats: Stats{Reports: map[tlsrpt.StateKind]uint64{}},
	}
}

// Stats are counts since the start, and the state at the last look. A report is one
// domain's day for one receiver.
type Stats struct {
	Reports map[tlsrpt.StateKind]uint64 // by what came of them; planned: attempts to be repeated
	Open    int                         // records to ask for and reports to deliver
	Oldest  time.Time                   // the end of the first day with one; zero: there is none
	LeftOut time.Time                   // when a quota last left a report out; zero: never
}

// Stats returns the statistics.
func (d *Deliverer) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	stats := d.stats
	stats.Reports = maps.Clone(stats.Reports)
	return stats
}

// Run plans and delivers until ctx ends. All attempts have ended at the return, also
// those of Send.
func (d *Deliverer) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := d.round(ctx); err != nil && ctx.Err() == nil {
			d.Log.Error("TLS reports cannot be delivered", "err", err, "next", "tried again in a minute")
		}
		select {
		case <-ctx.Done():
		case <-time.After(pace):
		}
	}
	d.turn <- struct{}{} // for ever
}

// round does what is due.
func (d *Deliverer) round(ctx context.Context) (err error) {
	defer recoverInto(&err)
	d.turn <- struct{}{}
	defer func() { <-d.turn }()
	days, err := d.Store.Days()
	open, oldest := 0, time.Time{}
	for _, day := range days {
		if stage, _ := d.Store.Stage(day); stage == tlsrpt.StageClosed && d.Now().Sub(day.End()) > tooLate {
			continue
		}
		left, failed := d.roundOfDay(ctx, day)
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", day, failed))
		}
		if left > 0 && open == 0 {
			oldest = day.End()
		}
		open += left
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.Open, d.stats.Oldest = open, oldest
	return err
}

// roundOfDay does what is due of a day, and returns how many reports are left.
func (d *Deliverer) roundOfDay(ctx context.Context, day tlsrpt.Day) (left int, err error) {
	p, err := d.begin(ctx, day)
	if err != nil || p.stage != tlsrpt.StagePlanned {
		return 0, err
	}
	err = d.Store.Deliveries(day, func(v tlsrpt.Delivery) error {
		p.deliver(v)
		return ctx.Err()
	})
	err = errors.Join(err, p.group.Wait())
	if left = int(p.left.Load()); err == nil && left == 0 {
		err = d.Store.SetStage(day, tlsrpt.StageDone)
	}
	return left, err
}

// ErrNoData says that nothing is known of a day, or of a domain's.
var ErrNoData = errors.New("no TLS session of that day is known")

// Send delivers the reports of a closed day at once, of one domain or of all if it is
// empty: also before their moment, and once more if they failed or were suppressed. What
// was accepted stays so. When all attempts have ended, it calls each with how far each
// report is. While Run works, it waits.
func (d *Deliverer) Send(ctx context.Context, day tlsrpt.Day, domain string, each func(tlsrpt.Delivery)) error {
	if err := d.sendNow(ctx, day, domain); err != nil {
		return err
	}
	tell := func(v tlsrpt.Delivery) error {
		each(v) // without the turn: who asked may be slow to read
		return ctx.Err()
	}
	if domain == "" {
		return d.Store.Deliveries(day, tell)
	}
	v, err := d.Store.Delivery(day, domain)
	if err != nil {
		return err
	}
	return tell(v)
}

// sendNow makes the attempts of Send.
func (d *Deliverer) sendNow(ctx context.Context, day tlsrpt.Day, domain string) (err error) {
	defer recoverInto(&err)
	if closes := day.End().Add(closesAfter); d.Now().Before(closes) {
		return fmt.Errorf("%s is not over yet: its reports can be sent after %s", day, closes.Format(time.RFC3339))
	}
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	days, err := d.Store.Days()
	if err != nil || !slices.Contains(days, day) {
		return cmp.Or(err, ErrNoData)
	}
	p, err := d.begin(ctx, day)
	if err == nil && p.stage == tlsrpt.StageOpen {
		err = fmt.Errorf("%s is not closed yet: try again in a minute", day)
	}
	if p.resend = true; err == nil { // for Run: there may be something to do again
		err = d.Store.SetStage(day, tlsrpt.StagePlanned)
	}
	if err != nil {
		return err
	}
	again := func(v tlsrpt.Delivery) error {
		v, err := p.again(v)
		if err == nil {
			p.deliver(v)
		}
		return cmp.Or(err, ctx.Err())
	}
	if domain == "" {
		return errors.Join(d.Store.Deliveries(day, again), p.group.Wait())
	}
	v, err := d.Store.Delivery(day, domain)
	if err != nil {
		return err
	}
	v.Day, v.Domain = day, domain
	return errors.Join(again(v), p.group.Wait())
}

// recoverInto turns a panic into an error. It is deferred.
func recoverInto(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("panic: %v, in\n%s", v, debug.Stack())
	}
}
