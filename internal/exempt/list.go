package exempt

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// MaxFor is how long an exemption may last.
	MaxFor = 366 * 24 * time.Hour

	writeAgain = time.Minute // after a failure
)

var (
	// ErrTooLong: an exemption may not last that long.
	ErrTooLong = fmt.Errorf("an exemption may last at most %d days", MaxFor/(24*time.Hour))
	// ErrNotKept: the change is in force, but not on disk.
	ErrNotKept = errors.New("in force, but not on disk: a restart would lose it")
)

// A Store keeps exemptions on disk; *cache.Store is one.
type Store interface {
	Exemptions() ([]Exemption, error)
	WriteExemptions([]Exemption) error
}

// A List holds the exemptions that are in force. Its methods are safe for
// concurrent use.
type List struct {
	store   Store
	apply   func([]Exemption) error
	now     func() time.Time
	log     *slog.Logger
	retry   *time.Timer // saves again
	writing sync.Mutex  // held while the store writes

	mu    sync.Mutex
	until map[string]time.Time
}

// Open reads what is stored and hands it to apply, which is told of every
// change. Exemptions that cannot be read have ended. now is the clock by
// which exemptions end.
func Open(store Store, apply func([]Exemption) error, now func() time.Time, log *slog.Logger) (*List, error) {
	l := &List{store: store, apply: apply, now: now, log: log, until: map[string]time.Time{}}
	l.retry = time.AfterFunc(writeAgain, func() { l.save() })
	l.retry.Stop()
	stored, err := store.Exemptions()
	if err != nil {
		log.Error("some exemptions could not be read and have ended", "err", err, "next", "see sts-tlsmap -exempt")
	}
	for _, x := range stored {
		if _, err := Parse(x.Domain); err == nil && x.Until.After(now()) {
			l.until[x.Domain] = x.Until
			l.endLater(x)
		}
	}
	if n := len(l.until); n > 0 {
		names := slices.Sorted(maps.Keys(l.until))
		log.Warn("some domains are exempt for a time: their policies are not applied", "exempt", n, "domains", names[:min(n, 20)],
			"next", "sts-tlsmap -exempt lists them; -exempt DOMAIN -for 0 ends one")
	}
	return l, apply(l.InForce())
}

// InForce returns the exemptions that are in force, ordered by domain.
func (l *List) InForce() []Exemption {
	l.mu.Lock()
	defer l.mu.Unlock()
	return sorted(l.until)
}

func sorted(until map[string]time.Time) []Exemption {
	list := make([]Exemption, 0, len(until))
	for _, domain := range slices.Sorted(maps.Keys(until)) {
		list = append(list, Exemption{domain, until[domain]})
	}
	return list
}

// Set exempts a domain for a time from now, in whole seconds, and returns the
// end; zero ends the domain's exemption. was says whether it had one. If the
// error is ErrNotKept, the change is in force, and writing is tried again.
func (l *List) Set(domain string, long time.Duration) (until time.Time, was bool, err error) {
	if domain, err = Parse(domain); err != nil {
		return until, false, err
	}
	if long < 0 || long > MaxFor {
		return until, false, ErrTooLong
	}
	if long > 0 {
		until = l.now().Add(long + time.Second - 1).Truncate(time.Second)
	}
	l.mu.Lock()
	next := maps.Clone(l.until)
	_, was = next[domain]
	delete(next, domain)
	if long > 0 {
		next[domain] = until
	}
	if err = l.apply(sorted(next)); err == nil {
		l.until = next
	}
	l.mu.Unlock()
	switch {
	case err != nil || !was && long == 0:
		return until, was, err
	case long > 0:
		l.log.Warn("domain exempt for a time: its policy is not applied", "domain", domain, "until", until.Format(time.RFC3339))
		l.endLater(Exemption{domain, until})
	default:
		l.log.Info("exemption ended: the domain's policy is applied again", "domain", domain)
	}
	return until, was, l.save()
}

// endLater drops an exemption after the time that it has left, unless it was changed
// before. Lookups end it earlier if the clock says so.
func (l *List) endLater(x Exemption) {
	time.AfterFunc(x.Until.Sub(l.now()), func() {
		l.mu.Lock()
		current := l.until[x.Domain].Equal(x.Until)
		l.mu.Unlock()
		if current {
			l.Set(x.Domain, 0)
		}
	})
}

// save brings what is in force to the disk.
func (l *List) save() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	err := l.store.WriteExemptions(l.InForce())
	if err == nil {
		return nil
	}
	l.log.Error("exemptions could not be written", "err", err, "next", "tried again in "+writeAgain.String())
	l.retry.Reset(writeAgain)
	return fmt.Errorf("%w: %w", ErrNotKept, err)
}
