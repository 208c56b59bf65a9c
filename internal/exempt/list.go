package exempt

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// MaxFor is how long an exemption may last. For good there is [exempt] in
	// the configuration.
	MaxFor = 366 * 24 * time.Hour

	// writeWait is how long a change waits for the disk. It is in force before.
	writeWait = 3 * time.Second
	// writeAgain is when a change that is not on disk is tried again.
	writeAgain = time.Minute

	// loggedAtStart bounds the domains named in one line.
	loggedAtStart = 20
)

// ErrTooLong: an exemption may not last that long.
var ErrTooLong = errors.New("too long for an exemption")

var errSlow = errors.New("the disk does not answer")

// A NotKeptError says that a change is in force, but not on disk.
type NotKeptError struct{ Err error }

func (e *NotKeptError) Error() string {
	return fmt.Sprintf("it is in force, but could not be written and is lost with a restart before that: %v", e.Err)
}

func (e *NotKeptError) Unwrap() error { return e.Err }

// A Store keeps exemptions on disk; *cache.Store is one.
type Store interface {
	Exemptions() ([]Exemption, error)
	WriteExemptions([]Exemption) error
}

// A List holds the exemptions that are in force. Its methods are safe for
// concurrent use.
type List struct {
	store Store
	apply func([]Exemption) error
	log   *slog.Logger

	writing chan struct{} // held by the one who writes

	mu      sync.Mutex
	until   map[string]time.Time
	dirty   bool // what is in force is not what is on disk
	changes int  // so far
	timer   *time.Timer
	closed  bool
}

// Open reads what is stored and hands it to apply, which is told of every
// change. What cannot be read is over.
func Open(store Store, apply func([]Exemption) error, log *slog.Logger) (*List, error) {
	l := &List{store: store, apply: apply, log: log, writing: make(chan struct{}, 1), until: make(map[string]time.Time)}
	stored, err := store.Exemptions()
	if err != nil {
		log.Error("not all exemptions could be read; the others are over", "err", err, "next", "see sts-tlsmap -exempt")
	}
	now := time.Now()
	for _, x := range stored {
		if _, err := Parse(x.Domain); err == nil && x.Until.After(now) {
			l.until[x.Domain] = x.Until
		} else {
			l.dirty = true
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.tell(); err != nil {
		return nil, fmt.Errorf("the exemptions that are stored: %w", err)
	}
	l.arm(now)
	if n := len(l.until); n > 0 {
		list := l.list()
		names := make([]string, 0, loggedAtStart)
		for _, x := range list[:min(n, loggedAtStart)] {
			names = append(names, x.Domain)
		}
		log.Warn("domains are exempt for a time: their policies are not applied", "exempt", n, "domains", names,
			"next", "sts-tlsmap -exempt lists them; -exempt DOMAIN -for 0 ends one")
	}
	return l, nil
}

// tell has what is in force applied. The caller has the lock.
func (l *List) tell() error { return l.apply(l.list()) }

// list returns what is in force, in the order of the domains. The caller has
// the lock.
func (l *List) list() []Exemption {
	list := make([]Exemption, 0, len(l.until))
	for domain, until := range l.until {
		list = append(list, Exemption{Domain: domain, Until: until})
	}
	slices.SortFunc(list, func(a, b Exemption) int { return strings.Compare(a.Domain, b.Domain) })
	return list
}

// InForce returns the exemptions that are in force, in the order of their
// domains.
func (l *List) InForce() []Exemption {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	return slices.DeleteFunc(l.list(), func(x Exemption) bool { return !x.Until.After(now) })
}

// Set exempts a domain for so long from now, and returns until when; zero ends
// its exemption. was says whether there was one. A *NotKeptError says that it
// is done, but not on disk.
func (l *List) Set(domain string, long time.Duration) (until time.Time, was bool, err error) {
	domain, err = Parse(domain)
	if err != nil {
		return time.Time{}, false, err
	}
	if long < 0 || long > MaxFor {
		return time.Time{}, false, fmt.Errorf("%w: more than %d days", ErrTooLong, MaxFor/(24*time.Hour))
	}
	now := time.Now()
	if until, was, err = l.change(domain, long, now); err != nil || !was && long == 0 {
		return until, was, err
	}
	if long == 0 {
		l.log.Info("exemption ended: the domain's policy is applied again", "domain", domain)
	} else {
		l.log.Warn("domain exempt for a time: its policy is not applied", "domain", domain, "until", until.Format(time.RFC3339))
	}
	if err := l.write(); err != nil {
		l.log.Error("exemptions could not be written; they are in force, and would not outlast a restart",
			"err", err, "next", "tried again in "+writeAgain.String())
		return until, was, &NotKeptError{err}
	}
	return until, was, nil
}

// change puts an exemption in force, or ends it.
func (l *List) change(domain string, long time.Duration, now time.Time) (until time.Time, was bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old, had := l.until[domain]
	was = had && old.After(now)
	if long == 0 {
		if !had {
			return time.Time{}, false, nil
		}
		delete(l.until, domain)
	} else {
		if until = now.Add(long).Truncate(time.Second); until.Before(now.Add(long)) {
			until = until.Add(time.Second) // whole seconds are stored, and none is taken away
		}
		l.until[domain] = until
	}
	if err := l.tell(); err != nil {
		if had {
			l.until[domain] = old
		} else {
			delete(l.until, domain)
		}
		return time.Time{}, was, err
	}
	l.dirty = true
	l.changes++
	l.arm(now)
	return until, was, nil
}

// write brings what is in force to the disk, and waits for that so long.
func (l *List) write() error {
	timer := time.NewTimer(writeWait)
	defer timer.Stop()
	select {
	case l.writing <- struct{}{}:
	case <-timer.C:
		return errSlow
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-l.writing }()
		l.mu.Lock()
		list, changes := l.list(), l.changes
		l.mu.Unlock()
		err := l.store.WriteExemptions(list)
		if err == nil {
			l.mu.Lock()
			l.dirty = l.dirty && l.changes != changes
			l.mu.Unlock()
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return errSlow
	}
}

// arm sets the timer to when something is to be done. The caller has the lock.
func (l *List) arm(now time.Time) {
	if l.timer != nil {
		l.timer.Stop()
	}
	if l.closed || len(l.until) == 0 && !l.dirty {
		return
	}
	wait := MaxFor
	if l.dirty {
		wait = writeAgain
	}
	for _, until := range l.until {
		wait = min(wait, max(until.Sub(now), 0))
	}
	l.timer = time.AfterFunc(wait, l.tick)
}

// tick drops what is over, and writes what is not on disk. The lookups see by
// themselves that an exemption is over.
func (l *List) tick() {
	now := time.Now()
	l.mu.Lock()
	for domain, until := range l.until {
		if !until.After(now) {
			delete(l.until, domain)
			l.dirty, l.changes = true, l.changes+1
			l.log.Info("exemption over: the domain's policy is applied again", "domain", domain)
		}
	}
	err := l.tell()
	dirty := l.dirty && !l.closed
	l.mu.Unlock()
	if err == nil && dirty {
		err = l.write()
	}
	if err != nil {
		l.log.Error("exemptions could not be written", "err", err, "next", "tried again in "+writeAgain.String())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.arm(time.Now())
}

// Close ends the timer, and writes what is not on disk yet.
func (l *List) Close() error {
	l.mu.Lock()
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
	dirty := l.dirty
	l.mu.Unlock()
	if !dirty {
		return nil
	}
	if err := l.write(); err != nil {
		return fmt.Errorf("the exemptions were not written: %w", err)
	}
	return nil
}
