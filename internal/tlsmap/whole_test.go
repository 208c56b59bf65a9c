package tlsmap_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// A dnsWorld is a resolver that validates, in front of a world in which
// everything is signed that is not below "unsigned.example".
type dnsWorld struct {
	mu      sync.Mutex
	records map[string]string // "name type": data
	asked   []string          // but for the probe's questions
	slow    time.Duration     // an answer takes
	blind   bool              // no AD bit any more
	liar    bool              // the AD bit on everything
	remote  bool              // its AD bit is not to be believed
	changes uint64
}

func newDNSWorld() *dnsWorld {
	return &dnsWorld{records: map[string]string{
		"dane.example MX":               "10 mx.dane.example.",
		"mx.dane.example A":             "192.0.2.1",
		"_25._tcp.mx.dane.example TLSA": "3 1 1 " + strings.Repeat("ab", 32),
		"enforce.example MX":            "10 mx.enforce.example.",
		"mx.enforce.example A":          "192.0.2.2",
		"testing.example MX":            "10 mx.testing.example.",
		"victim.unsigned.example MX":    "10 mx.dane.example.", // forged: its TLSA records are fine
		"signed.test SOA":               "a. b. 1 1 1 1 1",
		"unsigned.example SOA":          "a. b. 1 1 1 1 1",
	}}
}

func (w *dnsWorld) Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := name + " " + qtype.String()
	if qtype != resolver.TypeSOA {
		w.asked = append(w.asked, key)
	}
	slow := w.slow
	w.mu.Unlock()
	var err error
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			err = &resolver.Error{Name: name, Type: qtype, Kind: resolver.KindCanceled, Err: ctx.Err()}
		}
	}
	w.mu.Lock()
	if err != nil {
		return nil, err
	}
	signed := !strings.HasSuffix(name, "unsigned.example")
	var data []string
	d, ok := w.records[key]
	if ok {
		data = []string{d}
	}
	a := testlab.Answer(name, qtype, data...)
	a.TTL, a.NXDomain, a.Authenticated = 10*time.Minute, !ok, !w.remote && (w.liar || signed && !w.blind)
	return a, nil
}

func (w *dnsWorld) TrustsAD() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.remote
}

func (w *dnsWorld) Generation() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changes
}

func (w *dnsWorld) change(f func(w *dnsWorld)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

// questions returns how many were asked since the last call.
func (w *dnsWorld) questions() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.asked)
	w.asked = nil
	return n
}

// wholeLab is a lab over a real Checker that asks w. dane.example,
// enforce.example and victim.unsigned.example have enforced policies.
func wholeLab(t *testing.T, w *dnsWorld) (*lab, *dane.Checker) {
	l := newLab(t, 0)
	l.policies.held["dane.example"] = enforced("*.dane.example")
	l.policies.held["victim.unsigned.example"] = l.policies.held["enforce.example"]
	c := dane.New(dane.Options{Resolver: w, Probe: dane.ProbeNames{Signed: []string{"signed.test"}, Unsigned: []string{"unsigned.example"}}})
	l.Server = tlsmap.NewServer(l.table, tlsmap.Options{Policies: l.policies, NextHops: c, Timeout: 20 * time.Second})
	return l, c
}

func TestDNSQuestionsALookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newDNSWorld()
		l, _ := wholeLab(t, w)
		for range 3 {
			for _, key := range []string{"testing.example", "none.example", "unknown.example", "unreadable.example", ".dane.example", "localhost", "[192.0.2.1]"} {
				for _, m := range append(daneMaps, "exim") {
					l.ask(m, key)
				}
			}
			for _, m := range []string{"postfix", "postfix-tlsrpt"} {
				l.ask(m, "dane.example")
			}
		}
		if n := w.questions(); n != 0 {
			t.Errorf("%d questions where no policy is enforced, or no map with DANE was asked", n)
		}
		l.ask("postfix-dane", "dane.example")
		if n := w.questions(); n != 3 {
			t.Errorf("%d questions for the first lookup, want MX, A and TLSA", n)
		}
		for range 7 { // within the TTL, and before the last part of it
			time.Sleep(time.Minute)
			for _, m := range daneMaps {
				if got := l.ask(m, "dane.example"); got != "OK dane-only" {
					t.Errorf("map %s: %q", m, got)
				}
			}
		}
		if n := w.questions(); n != 0 {
			t.Errorf("%d questions for repeated lookups", n)
		}
		for range 3 {
			l.ask("exim", "dane.example")
		}
		if n := w.questions(); n != 3 {
			t.Errorf("%d questions for three lookups in map exim, want one each for MX", n)
		}
		synctest.Wait()
	})
}

// TestNoReplyGetsWeakerWithTheResolver has the resolver change under a running
// server: a domain with DANE is never answered "secure" for it.
func TestNoReplyGetsWeakerWithTheResolver(t *testing.T) {
	for name, change := range map[string]func(w *dnsWorld){
		"it stops validating":                      func(w *dnsWorld) { w.blind = true },
		"it vouches for everything":                func(w *dnsWorld) { w.liar = true },
		"it becomes slow":                          func(w *dnsWorld) { w.slow = time.Minute },
		"it is replaced by one on another host":    func(w *dnsWorld) { w.remote = true; w.changes++ },
		"it is replaced by one that validates not": func(w *dnsWorld) { w.blind = true; w.changes++ },
		"it stops validating and becomes slow":     func(w *dnsWorld) { w.blind, w.slow = true, 10*time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newDNSWorld()
				l, _ := wholeLab(t, w)
				if got := l.ask("postfix-dane", "dane.example"); got != "OK dane-only" {
					t.Fatalf("at first: %q", got)
				}
				w.change(change)
				for range 100 {
					if got := l.ask("postfix-dane", "dane.example"); got != "OK dane-only" && !strings.HasPrefix(got, "TEMP ") {
						t.Fatalf("%q", got)
					}
					time.Sleep(time.Minute)
				}
				time.Sleep(time.Hour) // whatever is still asked ends
			})
		})
	}
}

func TestAResolverThatIsSlowAtTheStartWeakensNoReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newDNSWorld()
		w.slow = time.Minute
		l, _ := wholeLab(t, w)
		for range 10 {
			began := time.Now()
			for _, key := range []string{"dane.example", "enforce.example"} {
				if got := l.ask("postfix-dane", key); !strings.HasPrefix(got, "TEMP ") {
					t.Fatalf("%s: %q", key, got)
				}
			}
			if d := time.Since(began); d > 40*time.Second {
				t.Errorf("two lookups took %v", d)
			}
			time.Sleep(time.Minute)
		}
		w.change(func(w *dnsWorld) { w.slow = 0 })
		time.Sleep(time.Minute)
		if got := l.ask("postfix-dane", "dane.example"); got != "OK dane-only" {
			t.Errorf("later: %q", got)
		}
		if got := l.ask("postfix-dane", "enforce.example"); !strings.HasPrefix(got, "OK secure match=") {
			t.Errorf("later: %q", got)
		}
		time.Sleep(time.Hour)
	})
}

// TestAResolverThatIsSlowAtTheStartAndAnswersWeakensNoReply has the first
// lookups wait beside the first probe.
func TestAResolverThatIsSlowAtTheStartAndAnswersWeakensNoReply(t *testing.T) {
	for _, slow := range []time.Duration{100 * time.Millisecond, time.Second, 3 * time.Second, 4900 * time.Millisecond, 6 * time.Second, 14 * time.Second} {
		for _, liar := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, lies: %v", slow, liar), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newDNSWorld()
					w.slow, w.liar = slow, liar
					l, _ := wholeLab(t, w)
					last := map[string]string{}
					for range 10 {
						var asking sync.WaitGroup
						replies := make(map[string]string)
						var mu sync.Mutex
						for _, key := range []string{"dane.example", "victim.unsigned.example"} {
							asking.Go(func() {
								reply := l.ask("postfix-dane", key)
								mu.Lock()
								defer mu.Unlock()
								replies[key] = reply
							})
						}
						asking.Wait()
						for key, weak := range map[string]string{"dane.example": "OK secure", "victim.unsigned.example": "OK dane-only"} {
							if got := replies[key]; strings.HasPrefix(got, weak) && !(liar && key == "dane.example") {
								t.Errorf("%s: %q", key, got)
							}
						}
						last = replies
						time.Sleep(time.Minute)
					}
					if got := last["victim.unsigned.example"]; slow < 14*time.Second && !strings.HasPrefix(got, "OK secure match=") {
						t.Errorf("in the end: %q", got)
					}
					if got := last["dane.example"]; slow < 5*time.Second && !liar && got != "OK dane-only" {
						t.Errorf("in the end: %q", got)
					}
					time.Sleep(time.Hour)
				})
			})
		}
	}
}

func TestWithoutTrustInTheADBitDANEMapsAnswerAsPlainMaps(t *testing.T) {
	for name, change := range map[string]func(w *dnsWorld){
		"on another host":        func(w *dnsWorld) { w.remote = true },
		"proven not to validate": func(w *dnsWorld) { w.blind = true },
		"proven to lie":          func(w *dnsWorld) { w.liar = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newDNSWorld()
				change(w)
				l, c := wholeLab(t, w)
				c.Verdict()
				synctest.Wait()
				for range 3 {
					if got, want := l.ask("postfix-dane", "dane.example"), l.ask("postfix", "dane.example"); got != want || !strings.HasPrefix(got, "OK secure ") {
						t.Errorf("%q, want %q", got, want)
					}
				}
				synctest.Wait()
			})
		})
	}
}
