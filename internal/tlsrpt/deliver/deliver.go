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
	"iter"
	"log/slog"
	"maps"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"
	"golang.org/x/time/rate"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// The bounds of planning and delivery.
const (
	pace          = time.Minute      // between two looks at what is due
	page          = 1000             // rows or domains read at once
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
	// States returns rows in the order of their keys, from the first after a key.
	States(day tlsrpt.Day, after string, limit int) ([]tlsrpt.State, error)
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
	MaxPerDestination int                      // see rank
	FailuresOnly      bool                     // no report of a day without a failed session
	Skip              func(domain string) bool // whether a domain gets no report; nil: none
	Log               *slog.Logger
}

// A Deliverer delivers reports. Run is called once, Stats at any time.
type Deliverer struct {
	Config
	lines   *rate.Limiter
	writer  writer
	loading sync.Mutex // held while a domain's day is in memory: a hostile one has 40 MB

	// Of Run alone.
	ranked map[tlsrpt.Day]bool // no row was added since rank
	looked map[tlsrpt.Day]look // what the last pass left

	mu    sync.Mutex
	stats Stats
}

// New returns a deliverer.
func New(config Config) *Deliverer {
	if config.Skip == nil {
		config.Skip = func(string) bool { return false }
	}
	return &Deliverer{
		Config: config, lines: rate.NewLimiter(linesASecond, linesASecond), writer: writer{store: config.Store},
		ranked: map[tlsrpt.Day]bool{}, looked: map[tlsrpt.Day]look{},
		stats: Stats{Reports: map[tlsrpt.StateKind]uint64{}},
	}
}

// Stats are counts since the start, and the state at the last look. A report is one
// domain's day for one destination.
type Stats struct {
	Reports map[tlsrpt.StateKind]uint64 // by what came of them; planned: attempts to be repeated
	LeftOut uint64                      // of those suppressed: because of MaxPerDestination

	Open   int       // records to ask for and reports to deliver
	Oldest time.Time // the end of the first day with one; zero: there is none
}

// Stats returns the statistics.
func (d *Deliverer) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	stats := d.stats
	stats.Reports = maps.Clone(stats.Reports)
	return stats
}

// Run plans and delivers until ctx ends. All attempts have ended at the return.
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
}

// round does what is due.
func (d *Deliverer) round(ctx context.Context) (err error) {
	defer recoverInto(&err)
	days, err := d.Store.Days()
	open, oldest := 0, time.Time{}
	for _, day := range days {
		left, failed := d.roundOfDay(ctx, day)
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", day, failed))
		}
		if left.open > 0 && open == 0 {
			oldest = day.End()
		}
		open += left.open
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.Open, d.stats.Oldest = open, oldest
	return err
}

// A look is what a pass has left of a day.
type look struct {
	open  int
	first time.Time // when the first of them is due
}

// roundOfDay does what is due of a day, and returns what is left.
func (d *Deliverer) roundOfDay(ctx context.Context, day tlsrpt.Day) (look, error) {
	closed, err := d.Store.Closed(day, time.Now())
	if err != nil || !closed {
		return look{}, err
	}
	rows, err := d.Store.States(day, "", 1) // the day's own row is the first
	if err != nil {
		return look{}, err
	}
	own := tlsrpt.State{Day: day, Kind: tlsrpt.Planned}
	if len(rows) > 0 && rows[0].Domain == "" {
		own = rows[0]
	}
	if own.Kind == tlsrpt.Planned {
		if err := d.plan(ctx, day); err != nil {
			return look{}, err
		}
		own.Kind, own.Changed = tlsrpt.Attempting, time.Now()
		if err := d.writer.put(own); err != nil {
			return look{}, err
		}
	}
	left, known := d.looked[day]
	if !own.Kind.Open() || known && left.first.After(time.Now()) {
		return left, nil
	}
	delete(d.looked, day)
	if !d.ranked[day] {
		if err := d.rank(ctx, day); err != nil {
			return look{}, err
		}
		d.ranked[day] = true
	}
	if left, err = d.pass(ctx, day); err != nil || left.open > 0 {
		if err == nil {
			d.looked[day] = left
		}
		return left, err
	}
	delete(d.ranked, day)
	own.Kind, own.Changed = tlsrpt.Accepted, time.Now()
	return left, d.writer.put(own)
}

// recoverInto turns a panic into an error. It is deferred.
func recoverInto(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("panic: %v, in\n%s", v, debug.Stack())
	}
}

// domains returns the rows of each domain of a day: its own first, then those of its
// destinations. A row that is written meanwhile may be missed.
func (d *Deliverer) domains(ctx context.Context, day tlsrpt.Day) iter.Seq2[[]tlsrpt.State, error] {
	return func(yield func([]tlsrpt.State, error) bool) {
		var group []tlsrpt.State
		after := tlsrpt.State{}.Key() // the day's own row
		for more := true; more; {
			rows, err := d.Store.States(day, after, page)
			if err = cmp.Or(err, ctx.Err()); err != nil {
				yield(nil, err)
				return
			}
			for _, row := range rows {
				if len(group) > 0 && group[0].Domain != row.Domain {
					if !yield(group, nil) {
						return
					}
					group = nil
				}
				group, after = append(group, row), row.Key()
			}
			more = len(rows) == page
		}
		if len(group) > 0 {
			yield(group, nil)
		}
	}
}

// registrable is the domain that was bought to have name.
func registrable(name string) string {
	domain, err := publicsuffix.EffectiveTLDPlusOne(name)
	if err != nil {
		return name // a public suffix itself
	}
	return domain
}

// A tally counts slow failures by who caused them, so that a zone that never answers,
// or a receiver that holds connections open, does not hold up others for long.
type tally struct {
	mu    sync.Mutex
	count map[string]int
}

// exhausted reports whether who is left alone for now.
func (t *tally) exhausted(who string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count[who] >= patience
}

// note counts err if it came late.
func (t *tally) note(who string, start time.Time, err error) {
	if err == nil || time.Since(start) < slow {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count == nil {
		t.count = map[string]int{}
	}
	t.count[who]++
}
