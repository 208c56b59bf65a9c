// Package deliver plans and delivers TLS reports (RFC 8460, 4.1 and 5.3 to 5.5): it asks
// for the records of a closed day's domains, draws a moment for each, and hands the
// reports over by mail or HTTPS, with retries for a day. How far each is stands in the
// store before and after each attempt. A record is unauthenticated text of a stranger:
// it can neither aim many reports at a third party nor hold up those of others.
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
	page          = 1000             // domains read, or planned, at once
	closesAfter   = 10 * time.Minute // a day's end, the store closes the day
	asksAtOnce    = 64               // records asked for while a day is planned
	sendsAtOnce   = 16               // domains whose reports are under way
	askTime       = 10 * time.Second // for a record
	slow          = 5 * time.Second  // a failure that took longer counts against patience
	patience      = 3                // slow failures of one zone or receiver; then the rest of its rows waits
	linesASecond  = 5                // log lines about single reports
	maxReasonText = 300              // bytes of State.Reason
)

// A Store holds the days and the state of their delivery; *store.Store is one.
type Store interface {
	Days() ([]tlsrpt.Day, error) // that hold data, oldest first
	// Closed reports whether nothing is added to a day any more.
	Closed(day tlsrpt.Day, now time.Time) (bool, error)
	Domains(day tlsrpt.Day, after string, limit int) ([]string, error) // in order
	Load(day tlsrpt.Day, domain string) (tlsrpt.DomainDay, error)
	// States returns the rows of a domain, its own first; of domain "", the day's own.
	States(day tlsrpt.Day, domain string) ([]tlsrpt.State, error)
	PutStates([]tlsrpt.State) error            // all or none; on disk when it returns
	Suppressed() (map[string]time.Time, error) // by report.Destination.Name, until when
}

// A Config holds what a Deliverer needs.
type Config struct {
	Store    Store
	Resolver policy.Resolver
	Reporter *report.Reporter

	// Mail hands a message over, and Post a compressed report; see SMTP, Sendmail and
	// HTTPS. They must return in time. See ErrRefused and ErrNoMTA.
	Mail func(ctx context.Context, from, to string, message []byte) error
	Post func(ctx context.Context, url string, compressed []byte) error

	Window            time.Duration            // in which the reports of a day are spread (RFC 8460, 4.1)
	MaxPerDestination int                      // see quota
	FailuresOnly      bool                     // no report of a day without a failed session
	Skip              func(domain string) bool // whether a domain gets no report; nil: none
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
	return &Deliverer{
		Config: config, lines: rate.NewLimiter(linesASecond, linesASecond), turn: make(chan struct{}, 1),
		stats: Stats{Reports: map[tlsrpt.StateKind]uint64{}},
	}
}

// Stats are counts since the start, and the state at the last look. A report is one
// domain's day for one destination.
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

// roundOfDay does what is due of a day, and returns how many records and reports are left.
func (d *Deliverer) roundOfDay(ctx context.Context, day tlsrpt.Day) (left int, err error) {
	p, err := d.begin(ctx, day)
	if err != nil || p.own.Kind != tlsrpt.Attempting {
		return 0, err
	}
	err = Each(d.Store, day, func(_ string, rows []tlsrpt.State) error {
		if slices.ContainsFunc(todo(rows), p.due) {
			p.start(rows)
		} else {
			p.see(rows)
		}
		return ctx.Err()
	})
	if err = errors.Join(err, p.group.Wait()); err == nil && p.left == 0 {
		err = d.put(closed(p.own, tlsrpt.Accepted, ""))
	}
	return p.left, err
}

// ErrNoData says that nothing is known of a day, or of a domain's.
var ErrNoData = errors.New("no TLS session of that day is known")

// Send delivers the reports of a closed day at once, of one domain or of all if it is
// empty: also before their moment, and once more if they failed or were suppressed. What
// was accepted stays so. It calls each, one at a time, with the rows of all destinations as
// they are then, and returns when all attempts have ended. While Run works, it waits.
func (d *Deliverer) Send(ctx context.Context, day tlsrpt.Day, domain string, each func(tlsrpt.State)) (err error) {
	defer recoverInto(&err)
	if closes := day.End().Add(closesAfter); time.Now().Before(closes) {
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
	if err == nil && p.own.Kind == tlsrpt.Planned {
		err = fmt.Errorf("%s is not closed yet: try again in a minute", day)
	}
	if err != nil {
		return err
	}
	mailed, err := d.mailed(day)
	if err != nil {
		return err
	}
	p.seen, p.own.Kind = each, tlsrpt.Attempting // for Run: there may be something to do again
	if err := d.put(p.own); err != nil {
		return err
	}
	again := func(_ string, rows []tlsrpt.State) error {
		if len(rows) > 0 {
			p.again(rows, mailed)
		}
		return ctx.Err()
	}
	if domain == "" {
		err = Each(d.Store, day, again)
	} else if rows, failed := d.Store.States(day, domain); len(rows) == 0 {
		err = cmp.Or(failed, ErrNoData)
	} else {
		err = again(domain, rows)
	}
	return errors.Join(err, p.group.Wait())
}

// Each calls f with each domain of a day, in order, and its rows, until f fails.
func Each(s Store, day tlsrpt.Day, f func(domain string, rows []tlsrpt.State) error) error {
	for after, more := "", true; more; {
		domains, err := s.Domains(day, after, page)
		if err != nil {
			return err
		}
		for _, after = range domains {
			rows, err := s.States(day, after)
			if err != nil {
				return err
			}
			if err := f(after, rows); err != nil {
				return err
			}
		}
		more = len(domains) == page
	}
	return nil
}

func (d *Deliverer) put(rows ...tlsrpt.State) error { return d.Store.PutStates(rows) }

// recoverInto turns a panic into an error. It is deferred.
func recoverInto(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("panic: %v, in\n%s", v, debug.Stack())
	}
}
