package exempt

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeStore is a disk that can fail and hang.
type fakeStore struct {
	mu     sync.Mutex
	list   []Exemption
	writes int
	bad    error         // of reading
	fails  error         // of writing
	gate   chan struct{} // writing waits until it is closed
}

func (f *fakeStore) Exemptions() ([]Exemption, error) { return f.list, f.bad }

func (f *fakeStore) WriteExemptions(list []Exemption) error {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	if gate != nil {
		<-gate
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes++
	if f.fails == nil {
		f.list = list
	}
	return f.fails
}

// stored is what is on disk when nothing is under way.
func (f *fakeStore) stored() []Exemption {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list
}

// fakeServer answers lookups.
type fakeServer struct {
	timed atomic.Pointer[Set]
}

func (f *fakeServer) setTimed(list []Exemption) error {
	set, err := Timed(list)
	if err == nil {
		f.timed.Store(&set)
	}
	return err
}

func (f *fakeServer) isExempt(domain string) bool {
	return f.timed.Load().Until([]byte(domain), time.Now().Unix()) != 0
}

// inForce has a List over a store, and what it has applied.
func inForce(t *testing.T, store *fakeStore, test func(t *testing.T, l *List, server *fakeServer, log *bytes.Buffer)) {
	synctest.Test(t, func(t *testing.T) {
		server, log := new(fakeServer), new(bytes.Buffer)
		l, err := Open(store, server.setTimed, slog.New(slog.NewTextHandler(log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		test(t, l, server, log)
		if err := l.Close(); err != nil && store.fails == nil {
			t.Error(err)
		}
	})
}

func TestAnExemptionIsInForceKeptAndEndsByItself(t *testing.T) {
	store := new(fakeStore)
	inForce(t, store, func(t *testing.T, l *List, server *fakeServer, log *bytes.Buffer) {
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
		for _, want := range []string{"its policy is not applied", "exemption over"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log does not say %q:\n%s", want, log)
			}
		}
	})
}

func TestAnExemptionOfNoTimeEndsOne(t *testing.T) {
	store := new(fakeStore)
	inForce(t, store, func(t *testing.T, l *List, server *fakeServer, _ *bytes.Buffer) {
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

func TestStoredExemptionsAreInForceAfterAStartUnlessTheyAreOver(t *testing.T) {
	// The bubble's clock begins in 2000.
	end := time.Date(2000, 1, 2, 0, 0, 0, 0, time.UTC)
	store := &fakeStore{
		list: []Exemption{{Domain: "a.test", Until: end}, {Domain: "over.test", Until: end.AddDate(-1, 0, 0)}, {Domain: "*.x", Until: end}},
		bad:  errors.New("a page is damaged"),
	}
	inForce(t, store, func(t *testing.T, l *List, server *fakeServer, log *bytes.Buffer) {
		if list := l.InForce(); len(list) != 1 || list[0].Domain != "a.test" || !server.isExempt("a.test") || server.isExempt("over.test") {
			t.Errorf("in force: %v", list)
		}
		if !strings.Contains(log.String(), "a page is damaged") || !strings.Contains(log.String(), "domains=[a.test]") {
			t.Errorf("the log says:\n%s", log)
		}
	})
	if len(store.list) != 1 {
		t.Errorf("what is over stays on disk: %v", store.list)
	}
}

func TestAnExemptionIsInForceAlthoughTheDiskIsFullAndIsWrittenLater(t *testing.T) {
	store := &fakeStore{fails: errors.New("no space left on device")}
	inForce(t, store, func(t *testing.T, l *List, server *fakeServer, _ *bytes.Buffer) {
		_, _, err := l.Set("a.test", time.Hour)
		var notKept *NotKeptError
		if !errors.As(err, &notKept) || !server.isExempt("a.test") {
			t.Fatalf("%v; exempt: %t", err, server.isExempt("a.test"))
		}
		store.mu.Lock()
		store.fails = nil
		store.mu.Unlock()
		time.Sleep(writeAgain + time.Second)
		if len(store.stored()) != 1 {
			t.Error("it was not written when there was room again")
		}
	})
}

func TestADiskThatHangsHoldsNobodyUp(t *testing.T) {
	store := new(fakeStore)
	inForce(t, store, func(t *testing.T, l *List, server *fakeServer, _ *bytes.Buffer) {
		gate := make(chan struct{}) // of the bubble, so that its time goes on
		store.gate = gate
		begun := time.Now()
		var notKept *NotKeptError
		for _, domain := range []string{"a.test", "b.test"} {
			if _, _, err := l.Set(domain, time.Hour); !errors.As(err, &notKept) || !server.isExempt(domain) {
				t.Errorf("%s: %v", domain, err)
			}
		}
		if took := time.Since(begun); took > 2*writeWait || len(l.InForce()) != 2 {
			t.Errorf("it took %v; in force: %v", took, l.InForce())
		}
		close(gate)
		time.Sleep(writeAgain + time.Second)
		if len(store.stored()) != 2 {
			t.Errorf("on disk: %v", store.stored())
		}
	})
}

func TestWhatCannotBeExemptIsAnError(t *testing.T) {
	inForce(t, new(fakeStore), func(t *testing.T, l *List, server *fakeServer, _ *bytes.Buffer) {
		if _, _, err := l.Set("a.test", MaxFor+1); !errors.Is(err, ErrTooLong) {
			t.Errorf("too long: %v", err)
		}
		if _, _, err := l.Set("*.test", time.Hour); err == nil {
			t.Error("*.test is taken")
		}
		for i := range MaxTimed + 1 {
			_, _, err := l.Set(strings.Repeat("a", i%50+1)+"."+strings.Repeat("b", i/50+1)+".test", time.Hour)
			if (err != nil) != (i == MaxTimed) {
				t.Fatalf("number %d: %v", i, err)
			}
		}
		if len(l.InForce()) != MaxTimed {
			t.Errorf("%d in force", len(l.InForce()))
		}
	})
}
