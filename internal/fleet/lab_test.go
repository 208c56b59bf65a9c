package fleet

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeEngine is a Redis without sockets, for tests in a bubble of time. It may be made to
// fail, and its values to lie.
type fakeEngine struct {
	mu      sync.Mutex
	strings map[string]fakeValue
	hashes  map[string]map[string]string
	away    error
	takes   time.Duration
	calls   map[string]int // by command
	lie     func(args []string, reply any) any
	off     time.Duration // of its clock
}

type fakeValue struct {
	text string
	ends time.Time
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{strings: map[string]fakeValue{}, hashes: map[string]map[string]string{}, calls: map[string]int{}}
}

func (e *fakeEngine) set(change func(*fakeEngine)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(e)
}

func (e *fakeEngine) close() {}

func (e *fakeEngine) do(ctx context.Context, _ string, args ...string) (any, error) {
	e.mu.Lock()
	takes := e.takes
	e.mu.Unlock()
	if takes > 0 {
		timer := time.NewTimer(takes)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := cmpErr(ctx.Err(), e.away); err != nil {
		return nil, err
	}
	e.calls[args[0]]++
	reply, err := e.run(args)
	if e.lie != nil {
		reply = e.lie(args, reply)
	}
	return reply, err
}

func cmpErr(list ...error) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *fakeEngine) get(key string) (string, bool) {
	v, ok := e.strings[key]
	if ok && !v.ends.IsZero() && !time.Now().Before(v.ends) {
		delete(e.strings, key)
		return "", false
	}
	return v.text, ok
}

func (e *fakeEngine) put(key, text, ms string) {
	n, _ := strconv.ParseInt(ms, 10, 64)
	e.strings[key] = fakeValue{text, time.Now().Add(time.Duration(n) * time.Millisecond)}
}

func (e *fakeEngine) run(args []string) (any, error) {
	switch args[0] {
	case "GET":
		if text, ok := e.get(args[1]); ok {
			return text, nil
		}
		return nil, nil
	case "SET": // key value NX PX ms
		if _, ok := e.get(args[1]); ok {
			return nil, nil
		}
		e.put(args[1], args[2], args[5])
		return "OK", nil
	case "EVAL": // writeNewer
		if args[1] != writeNewer {
			return nil, errors.New("another script")
		}
		if text, ok := e.get(args[3]); ok {
			if s := text[min(9, len(text)):min(24, len(text))]; s >= args[5] && s <= args[7] {
				return int64(0), nil
			}
		}
		e.put(args[3], args[4], args[6])
		return int64(1), nil
	case "DEL":
		delete(e.strings, args[1])
		return int64(1), nil
	case "HSET":
		if e.hashes[args[1]] == nil {
			e.hashes[args[1]] = map[string]string{}
		}
		e.hashes[args[1]][args[2]] = args[3]
		return int64(1), nil
	case "HGETALL":
		var list []any
		for field, text := range e.hashes[args[1]] {
			list = append(list, field, text)
		}
		return list, nil
	case "HDEL":
		for _, field := range args[2:] {
			delete(e.hashes[args[1]], field)
		}
		return int64(1), nil
	case "PEXPIRE":
		return int64(1), nil
	case "TIME":
		now := time.Now().Add(e.off)
		return []any{strconv.FormatInt(now.Unix(), 10), "0"}, nil
	}
	return nil, replyError("ERR unknown command " + args[0])
}

// memoryStore is a Store.
type memoryStore struct {
	mu     sync.Mutex
	stamps []byte
	err    error
}

func (s *memoryStore) FleetStamps() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.stamps), s.err
}

func (s *memoryStore) WriteFleetStamps(stamps []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.stamps = slices.Clone(stamps)
	}
	return s.err
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A relay is a Fleet on a fake engine, with what it was ordered.
type relay struct {
	*Fleet
	store *memoryStore
	log   *logBuffer
	stop  func()

	mu      sync.Mutex
	ordered []string
	failing error
}

var testKey = newSigningKey([]byte(strings.Repeat("k", keyBytes)))

// newRelay makes a relay that does not run.
func newRelay(name string, e engine, bend func(*relay)) *relay {
	r := &relay{store: new(memoryStore), log: new(logBuffer)}
	note := func(words ...string) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.failing == nil {
			r.ordered = append(r.ordered, strings.Join(words, " "))
		}
		return r.failing
	}
	o := Options{Prefix: "t:", Name: name, Version: "1", Now: time.Now, Store: r.store, Log: slog.New(slog.NewTextHandler(r.log, nil)), Orders: Orders{
		Exempt: func(domain string, until time.Time, by string) error {
			return note("exempt", domain, time.Until(until).Round(time.Hour).String(), by)
		},
		Forget:  func(_ context.Context, domain string, _ time.Time) error { return note("forget", domain) },
		Refresh: func(_ context.Context, domain string) error { return note("refresh", domain) },
	}}
	r.Fleet = newFleet(o, []signingKey{testKey}, e, nil)
	if bend != nil {
		bend(r)
	}
	return r
}

// run runs it until the test calls stop.
func (r *relay) run(t *testing.T) *relay {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx) }()
	r.stop = func() { cancel(); <-ended }
	return r
}

func (r *relay) orderedSoFar() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ordered)
}
