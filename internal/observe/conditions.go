package observe

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// The conditions, as the label of a metric has them.
const (
	Discovery  = "discovery"
	Roots      = "roots"
	Resolver   = "resolver"
	Clock      = "clock"
	Refresher  = "refresher"
	Writes     = "writes"
	Full       = "full"
	MemoryOnly = "memory-only"
	Salvage    = "salvage"
	Validation = "validation"
	Reports    = "reports"
	Fleet      = "fleet"
)

// The severities, as the packaged alert rules have them.
const (
	Page   = "page"   // mail waits or goes out unprotected, or soon will
	Ticket = "ticket" // can wait for the morning
)

// lookEvery is how often the Observer looks for conditions to log.
const lookEvery = 30 * time.Second

// refusedFor is how long a refused value of the fleet's server is a condition.
const refusedFor = 10 * time.Minute

// A condition is a state in which the daemon goes on answering and an operator
// has to act.
type condition struct {
	name, severity string
	logged         bool // the package that notices it logs its beginning
	holds          func(s *signs) bool
	what, next     func(s *signs) string // what is wrong, and what to do
}

// signs are the data that the conditions are derived from.
type signs struct {
	Stats
	now      time.Time
	rootsErr error // why the authorities could not be read the last time
}

func words(w string) func(*signs) string { return func(*signs) string { return w } }

// conditions are all of them. Metrics, -check, the status page and the log say
// what this table says; a test has each one's row in docs/metrics.md and its
// alert rule.
var conditions = []condition{
	{Discovery, Page, true, func(s *signs) bool { return s.Keeper.FetchDead && !s.Keeper.Untrusted },
		words("no policy fetch has succeeded for some minutes, although several domains were tried"),
		words("see whether this machine reaches port 443 of policy hosts, and HTTPS_PROXY; sts-tlsmap -explain DOMAIN shows each step")},
	{Roots, Page, false, func(s *signs) bool { return s.rootsErr != nil },
		func(s *signs) string {
			return fmt.Sprintf("the certificate authorities cannot be read any more (%v); those read at the start stay in force", s.rootsErr)
		},
		words("correct ca_file in [fetch] or the file that it names: without it the daemon will not start again")},
	{Roots, Page, true, func(s *signs) bool { return s.Keeper.FetchDead && s.Keeper.Untrusted && s.rootsErr == nil },
		words("no policy host's certificate has been trusted for some minutes, although several domains were tried"),
		words("see whether this machine's clock is right, whether ca-certificates is installed and current (or ca_file in [fetch]), " +
			"and whether something on the way intercepts TLS")},
	{Resolver, Page, true, func(s *signs) bool { return s.Keeper.DNSDead },
		words("no TXT lookup has succeeded for some minutes, although several domains were tried"),
		words("see whether the resolver answers: servers in [dns], or /etc/resolv.conf")},
	{Clock, Page, false, func(s *signs) bool { return s.Keeper.ClockOff != 0 },
		func(s *signs) string {
			return fmt.Sprintf("the clock says %s; going by the last write to the cache and the time that has passed, it is %s",
				text.Clock(s.now), text.Clock(s.time(s.now)))
		},
		words("set the clock if it is wrong: after a day the daemon follows it again. Until then policies live by the time that passes, " +
			"and mail to a new domain waits if a certificate seems expired or not yet valid, or if the resolver answers SERVFAIL")},
	{Refresher, Ticket, true, func(s *signs) bool { return s.late() >= keeper.LateAfter },
		func(s *signs) string { return fmt.Sprintf("the refresher is %s late", text.Span(s.late())) },
		words("if it stays so, raise fetch_rate or concurrency in [refresh]")},
	{Writes, Page, true, func(s *signs) bool { return s.Keeper.Failing },
		func(s *signs) string {
			if s.Keeper.CommitTakes > 0 {
				return fmt.Sprintf("a write to the cache has not ended for %d s; new policies are kept in memory", s.Keeper.CommitTakes)
			}
			return "the cache cannot be written to; new policies are kept in memory"
		},
		words("see whether the disk is full, and who owns the folder of the cache; writes are tried again until they succeed")},
	{Full, Ticket, true, func(s *signs) bool { return s.Keeper.Full },
		words("the cache is full of policies in use: within the last hour there was no room for others, which are answered from memory and lost with a restart"),
		words("raise max_size in [cache]")},
	{MemoryOnly, Page, true, func(s *signs) bool { return s.Cache.MemoryOnly != nil },
		func(s *signs) string {
			return fmt.Sprintf("the cache is in memory only (%s), and lost with a restart", oneLine(s.Cache.MemoryOnly))
		},
		words("see that the folder of the cache is there, has room, and belongs to the daemon's user; it is tried again every minute")},
	{Salvage, Ticket, true, func(s *signs) bool { return s.Cache.Salvage != nil }, (*signs).salvaged, (*signs).afterSalvage},
	{Validation, Page, true, func(s *signs) bool { return s.DANE.Kept > 0 && s.DANE.Verdict != dane.Validates },
		func(s *signs) string {
			return fmt.Sprintf("%d next-hops keep the DANE that they had, since nothing confirms what the DNS says of them now: %s", s.DANE.Kept, s.DANE.Verdict)
		},
		words("run a validating resolver on this machine: until then mail to them waits, if the relay asks the same resolver; " +
			"a restart of the daemon forgets that they had DANE")},
	{Reports, Ticket, true, func(s *signs) bool { return s.Reports.Err != nil },
		func(s *signs) string { return "TLS reports do not work: " + oneLine(s.Reports.Err) },
		words("see [tlsrpt] in the configuration, and the units sts-tlsmap-tlsrpt*.socket; lookups are not affected, and it is tried again each minute")},
	{Fleet, Ticket, true, func(s *signs) bool { return s.Fleet.Trouble != "" },
		func(s *signs) string {
			return "this relay shares nothing with the fleet and goes on alone: " + s.Fleet.Trouble
		},
		words("see [fleet] in the configuration, and the server; it is tried again every few seconds, and lookups are not affected")},
	{Fleet, Ticket, false, func(s *signs) bool { return s.Fleet.ClockOff.Abs() > fleet.MaxClockOff },
		func(s *signs) string {
			return fmt.Sprintf("the clock of this relay is %s off that of the fleet's server", text.Span(s.Fleet.ClockOff.Abs()))
		},
		words("set the clocks: what a relay shares is refused by relays whose clock is more than a minute behind")},
	{Fleet, Ticket, true, func(s *signs) bool { return s.Fleet.RefusedAt.After(s.now.Add(-refusedFor)) },
		func(s *signs) string { return RefusedWords(&s.Fleet) },
		words("see whether all relays have the same key_file and the right time, and who else may write to the server; what is refused counts as absent")},
}

// RefusedWords say which values of the fleet's server were not believed; empty: none.
func RefusedWords(f *fleet.Stats) string {
	var reasons []string
	for _, r := range fleet.Reasons {
		if n := f.Refused[r]; n > 0 {
			reasons = append(reasons, fmt.Sprintf("%s %d", r, n))
		}
	}
	if len(reasons) == 0 {
		return ""
	}
	return fmt.Sprintf("values of the fleet's server were refused since the start (%s), the last at %s: %s",
		strings.Join(reasons, ", "), text.Clock(f.RefusedAt), f.RefusedKey)
}

func (s *signs) late() time.Duration { return time.Duration(s.Keeper.LateSeconds) * time.Second }

// oneLine is an error of several lines in one.
func oneLine(err error) string {
	if err == nil {
		return "the cause is not known"
	}
	return strings.ReplaceAll(err.Error(), "\n", ": ")
}

func (s *signs) salvaged() string {
	r := s.Cache.Salvage
	lost := "how many were lost is not known"
	if r.Lost >= 0 {
		lost = fmt.Sprintf("%d lost", r.Lost)
	}
	what := fmt.Sprintf("the cache file was set aside (%s): %d policies were carried over, %d were damaged, %s", oneLine(r.Why), r.Recovered, r.Damaged, lost)
	if s.Cache.Salvaging {
		what += "; this goes on"
	}
	if r.MovedTo != "" {
		what += "; the old file is " + r.MovedTo
	}
	return what
}

func (s *signs) afterSalvage() string {
	return cmp.Or(s.Cache.Salvage.Advice(), "look at the disk and the memory of this machine") +
		"; lost policies are found anew by the next lookup; this ends with a restart"
}

// Conditions returns the names of all conditions, and their severities.
func Conditions() (names []string, severity map[string]string) {
	severity = make(map[string]string)
	for _, c := range conditions {
		if severity[c.name] == "" {
			names = append(names, c.name)
		}
		severity[c.name] = c.severity
	}
	return names, severity
}

// A trouble is a condition that holds.
type trouble struct {
	*condition
	what, next string
}

func (o *Observer) troubles() []trouble {
	s := signs{Stats: o.Stats(), now: time.Now()}
	o.mu.Lock()
	s.rootsErr = o.rootsErr
	o.mu.Unlock()
	var list []trouble
	for i := range conditions {
		c := &conditions[i]
		if c.holds(&s) {
			list = append(list, trouble{c, c.what(&s), c.next(&s)})
		}
	}
	return list
}

// Troubles returns the conditions that hold now, in the order of Conditions.
func (o *Observer) Troubles() []control.Trouble {
	var list []control.Trouble
	for _, t := range o.troubles() {
		list = append(list, control.Trouble{Condition: t.name, Severity: t.severity, What: t.what, Next: t.next})
	}
	return list
}

// Run looks for conditions to log until ctx ends.
func (o *Observer) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		o.Look()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// Look reads the certificate authorities again, and logs each condition that has begun
// or ended since the last look. Run looks every half minute; call Look after a reload.
func (o *Observer) Look() {
	o.looking.Lock()
	defer o.looking.Unlock()
	err := o.Roots()
	o.mu.Lock()
	o.rootsErr = err
	o.mu.Unlock()
	now := make(map[string]bool)
	for _, t := range o.troubles() {
		now[t.name] = true
		if !o.holding[t.name] && !t.logged {
			o.Log.Error(t.what, "condition", t.name, "next", t.next)
		}
	}
	for name := range o.holding {
		if !now[name] {
			o.Log.Info("the condition has ended", "condition", name)
		}
	}
	o.holding = now
}
