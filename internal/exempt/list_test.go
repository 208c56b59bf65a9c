package exempt_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
)

// fakeStore is a disk that can fail.
type fakeStore struct {
	mu     sync.Mutex
	list   []exempt.Exemption
	writes int
	bad    error // of reading
	fails  error // of writing
}

func (f *fakeStore) Exemptions() ([]exempt.Exemption, error) { return f.list, f.bad }

func (f *fakeStore) WriteExemptions(list []exempt.Exemption) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes++
	if f.fails == nil {
		f.list = list
	}
	return f.fails
}

// stored is what is on disk when nothing is under way.
func (f *fakeStore) stored() []exempt.Exemption {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list
}

// fakeServer answers lookups.
type fakeServer struct {
	timed atomic.Pointer[exempt.Set]
	now   func() time.Time // nil: time.Now
}

func (f *fakeServer) setTimed(list []exempt.Exemption) error {
	set, err := exempt.Timed(list)
	if err == nil {
		f.timed.Store(&set)
	}
	return err
}

func (f *fakeServer) isExempt(domain string) bool {
	now := time.Now
	if f.now != nil {
		now = f.now
	}
	return f.timed.Load().Until([]byte(domain), now().Unix()) != 0
}

// inForce has a List over a store, and what it has applied.
func inForce(t *testing.T, store *fakeStore, test func(t *testing.T, l *exempt.List, server *fakeServer, log *bytes.Buffer)) {
	synctest.Test(t, func(t *testing.T) {
		server, log := new(fakeServer), new(bytes.Buffer)
		l, err := exempt.Open(store, server.setTimed, time.Now, slog.New(slog.NewTextHandler(log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		test(t, l, server, log)
	})
}

func TestAnExemptionIsInForceKeptAndEndsByItself(t *testing.T) {
	store := new(fakeStore)
	inForce(t, store, func(t *testing.T, l *exempt.List, server *fakeServer, log *bytes.Buffer) {
		until, was, err := l.Set("Bücher.Example", 4*time.Hour)
		if err != nil || was || !until.Equal(time.Now().Add(4*time.Hour)) {
			t.Fatalf("%v, %t, %v", until, was, err)
		}
		if !server.isExempt("xn--bcher-kva.example") || len(store.stored()) != 1 {
			t.Errorf("in force: %t; on disk: %v", server.isExempt("xn--bcher-kva.example"), store.stored())
		}
		time.Sleep(4*time.Hour + time.Second)
		if server.isExempt("xn--bcher-kva.example") || len(l.InForce()) != 0 || len(store.stored()) != 0 {
			t.Errorf("it is not over: %v, on disk: %v", l.InForce(), store.stored())
		}
		for _, want := range []string{"its policy is not applied", "exemption ended"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log does not say %q:\n%s", want, log)
			}
		}
	})
}

func TestAnExemptionForZeroEndsIt(t *testing.T) {
	store := new(fakeStore)
	inForce(t, store, func(t *testing.T, l *exempt.List, server *fakeServer, _ *bytes.Buffer) {
		if _, was, err := l.Set("a.test", 0); was || err != nil || store.writes != 0 {
			t.Errorf("where there is none: %t, %v, %d writes", was, err, store.writes)
		}
		if _, _, err := l.Set(".a.test", time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, was, err := l.Set(".a.test", 0); !was || err != nil || server.isExempt("b.a.test") || len(store.stored()) != 0 {
			t.Errorf("%t, %v, on disk: %v", was, err, store.stored())
		}
	})
}

func TestStoredExemptionsApplyAfterAStartUntilTheyEnd(t *testing.T) {
	// The bubble's clock begins in 2000.
	end := time.Date(2000, 1, 2, 0, 0, 0, 0, time.UTC)
	store := &fakeStore{
		list: []exempt.Exemption{{Domain: "a.test", Until: end}, {Domain: "over.test", Until: end.AddDate(-1, 0, 0)}, {Domain: "*.x", Until: end}},
		bad:  errors.New("a page is damaged"),
	}
	inForce(t, store, func(t *testing.T, l *exempt.List, server *fakeServer, log *bytes.Buffer) {
		if list := l.InForce(); len(list) != 1 || list[0].Domain != "a.test" || !server.isExempt("a.test") || server.isExempt("over.test") {
			t.Errorf("in force: %v", list)
		}
		if !strings.Contains(log.String(), "a page is damaged") || !strings.Contains(log.String(), "domains=[a.test]") {
			t.Errorf("the log says:\n%s", log)
		}
	})
}

// The wall clock is 8 days ahead, and in doubt. It is set right before a restart.
func TestAnExemptionThatIsSetWhileTheClockIsWrongLastsForItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, wall := new(fakeStore), time.Duration(0)
		start := func(ahead time.Duration) (*exempt.List, *fakeServer) {
			begin := time.Now()
			c := keeper.NewClock(func() time.Time { return time.Now().Round(0).Add(wall) }, func() time.Duration { return time.Since(begin) })
			wall = ahead
			server := &fakeServer{now: c.Now}
			l, err := exempt.Open(store, server.setTimed, c.Now, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			return l, server
		}
		l, server := start(8 * 24 * time.Hour)
		if _, _, err := l.Set("a.test", 4*time.Hour); err != nil || !server.isExempt("a.test") {
			t.Errorf("%v; exempt: %t", err, server.isExempt("a.test"))
		}
		time.Sleep(time.Hour)
		wall = 0
		l, server = start(0)
		time.Sleep(3*time.Hour - time.Minute)
		if !server.isExempt("a.test") {
			t.Error("it ended early")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if server.isExempt("a.test") || len(l.InForce()) != 0 {
			t.Errorf("after its time: %v", l.InForce())
		}
	})
}

func TestAnExemptionAppliesOnAFullDiskAndIsWrittenLater(t *testing.T) {
	store := &fakeStore{fails: errors.New("no space left on device")}
	inForce(t, store, func(t *testing.T, l *exempt.List, server *fakeServer, _ *bytes.Buffer) {
		_, _, err := l.Set("a.test", time.Hour)
		if !errors.Is(err, exempt.ErrNotKept) || !server.isExempt("a.test") {
			t.Fatalf("%v; exempt: %t", err, server.isExempt("a.test"))
		}
		store.mu.Lock()
		store.fails = nil
		store.mu.Unlock()
		time.Sleep(time.Minute + 5*time.Second)
		if len(store.stored()) != 1 {
			t.Error("it was not written when there was room again")
		}
	})
}

func TestInvalidExemptionsAreErrors(t *testing.T) {
	store := new(fakeStore)
	for i := range exempt.MaxTimed - 1 {
		store.list = append(store.list, exempt.Exemption{Domain: fmt.Sprintf("d%d.test", i), Until: time.Date(2000, 1, 2, 0, 0, 0, 0, time.UTC)})
	}
	inForce(t, store, func(t *testing.T, l *exempt.List, server *fakeServer, _ *bytes.Buffer) {
		if _, _, err := l.Set("a.test", exempt.MaxFor+1); !errors.Is(err, exempt.ErrTooLong) {
			t.Errorf("too long: %v", err)
		}
		if _, _, err := l.Set("*.test", time.Hour); err == nil {
			t.Error("*.test is taken")
		}
		if _, _, err := l.Set("last.test", time.Hour); err != nil {
			t.Errorf("number %d: %v", exempt.MaxTimed, err)
		}
		if _, _, err := l.Set("more.test", time.Hour); err == nil || len(l.InForce()) != exempt.MaxTimed {
			t.Errorf("one more: %v; %d in force", err, len(l.InForce()))
		}
	})
}
