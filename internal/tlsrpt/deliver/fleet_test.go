package deliver_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// A hub is the engine of a fleet, in memory.
type hub struct {
	mu     sync.Mutex
	fields map[string]map[string]string
	leases map[string]lease
	away   bool
	refuse func(key, field string) bool // a value whose HMAC is wrong
}

type lease struct {
	relay string
	ends  time.Time
}

var errHub = errors.New("the engine is away")

// An end is a relay's connection to the hub. It is cut when the relay is killed.
type end struct {
	*hub
	store *memory
}

func (e end) broken() error {
	e.store.mu.Lock()
	defer e.store.mu.Unlock()
	if e.away {
		return errHub
	}
	return e.store.dead
}

func (e end) PutReport(_ context.Context, kind, day, domain, field, content string, keep time.Duration) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.broken(); err != nil || keep <= 0 || len(content) > 256<<10 {
		return errors.Join(errHub, err)
	}
	key := kind + day + domain
	if e.fields[key] == nil {
		e.fields[key] = map[string]string{}
	}
	e.fields[key][field] = content
	return nil
}

func (e end) Report(_ context.Context, kind, day, domain string) (map[string]string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	found := maps.Clone(e.fields[kind+day+domain])
	maps.DeleteFunc(found, func(field, _ string) bool { return e.refuse != nil && e.refuse(kind, field) })
	return found, e.broken()
}

func (e end) LeaseDelivery(_ context.Context, day, domain, relay string, long time.Duration) (bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.broken(); err != nil {
		return false, err
	}
	key := day + domain
	if l, ok := e.leases[key]; ok && l.relay != relay && time.Now().Before(l.ends) {
		return false, nil
	}
	e.leases[key] = lease{relay, time.Now().Add(long)}
	return true, nil
}

// A relay is a member of a fleet in one bubble.
type relay struct {
	*world
	name  string
	stop  func()
	ended chan struct{}
}

// A team is a fleet whose relays post to one receiver.
type team struct {
	*world
	*hub
	relays []*relay

	mu  sync.Mutex
	got []report.Report // accepted, in the order of their coming
}

func inTeam(t *testing.T, n int, f func(t *testing.T, m *team)) {
	inWorld(t, func(t *testing.T, w *world) {
		m := &team{world: w, hub: &hub{fields: map[string]map[string]string{}, leases: map[string]lease{}}}
		w.config.Post = func(_ context.Context, _ string, compressed []byte) error {
			z, err := gzip.NewReader(bytes.NewReader(compressed))
			var r report.Report
			if err = errors.Join(err, json.NewDecoder(z).Decode(&r)); err != nil {
				t.Error(err)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			m.got = append(m.got, r)
			return nil
		}
		for i := range n {
			r := &relay{world: &world{t: t, store: newMemory(), records: w.records, config: w.config}, name: fmt.Sprintf("relay%d", i)}
			r.config.Store, r.config.Fleet, r.config.Relay = r.store, end{m.hub, r.store}, r.name
			m.relays = append(m.relays, r)
		}
		f(t, m)
		for _, r := range m.relays {
			r.end()
		}
	})
}

// begin begins a process.
func (r *relay) begin() {
	r.store.mu.Lock()
	r.store.dead, r.store.dieAfter = nil, 0
	r.store.mu.Unlock()
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	r.stop, r.ended = cancel, make(chan struct{})
	go func() {
		defer close(r.ended)
		deliver.New(r.config).Run(ctx)
	}()
}

// end ends it.
func (r *relay) end() {
	if r.stop != nil {
		r.stop()
		<-r.ended
		r.stop = nil
	}
}

func (m *team) begin() {
	for _, r := range m.relays {
		r.begin()
	}
}

// session counts one session of the day before at a relay.
func (r *relay) session(domain string, n int, failed bool) {
	d, ok := r.store.days[yesterday][domain]
	if !ok {
		d = tlsrpt.DomainDay{Domain: domain, Day: yesterday, Policies: []tlsrpt.Summary{{Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: domain}}}}
	}
	if r.store.days[yesterday] == nil {
		r.store.days[yesterday] = map[string]tlsrpt.DomainDay{}
	}
	s := &d.Policies[0]
	if !failed {
		s.Successful += uint64(n)
	} else {
		s.Failed += uint64(n)
		f := tlsrpt.Failure{Result: tlsrpt.CertificateExpired, MXHost: fmt.Sprintf("mx%d.%s", n%3, domain)}
		s.Details = tlsrpt.Count(s.Details, f, uint64(n), false)
	}
	r.store.days[yesterday][domain] = d
}

// sums returns the reports by domain, those with one id once, and the sessions in them.
func (m *team) sums() (reports map[string]int, good, failed, detailed map[string]uint64, repeated int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	reports, good, failed, detailed = map[string]int{}, map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
	seen := map[string]bool{}
	for _, r := range m.got {
		if seen[r.ID] {
			repeated++
			continue
		}
		seen[r.ID] = true
		domain := strings.Split(r.ID[9:], ".test.")[0] + ".test"
		reports[domain]++
		for _, p := range r.Policies {
			good[domain] += p.Summary.Successful
			failed[domain] += p.Summary.Failed
			for _, d := range p.Details {
				detailed[domain] += d.Sessions
			}
		}
	}
	return reports, good, failed, detailed, repeated
}

// want checks that n reports about a domain have some sessions together.
func (m *team) wantSum(domain string, n int, sessions uint64) {
	m.t.Helper()
	reports, good, failed, _, repeated := m.sums()
	if reports[domain] != n || good[domain]+failed[domain] != sessions || repeated > 0 {
		m.t.Errorf("%s: %d reports of %d sessions, %d repeated; want %d of %d", domain, reports[domain], good[domain]+failed[domain], repeated, n, sessions)
	}
}

func TestTheRelaysOfAFleetSendOneReportWithTheSessionsOfAll(t *testing.T) {
	inTeam(t, 5, func(t *testing.T, m *team) {
		m.publish("one.test", "https://hook.test/")
		for i, r := range m.relays {
			r.session("one.test", 10+i, false)
			r.session("one.test", i+1, true)
		}
		m.begin()
		time.Sleep(time.Hour)
		m.wantSum("one.test", 0, 0) // not before each relay that runs has put its sessions
		time.Sleep(24 * time.Hour)
		m.wantSum("one.test", 1, 60+15)
		for _, r := range m.relays {
			if v := r.store.delivery(yesterday, "one.test"); v.To[0].Kind != tlsrpt.Accepted || v.Alone || r.store.stage(yesterday) != tlsrpt.StageDone {
				t.Errorf("%s: %+v, the day is %s", r.name, v, r.store.stage(yesterday))
			}
		}
	})
}

// The numbers are those of issue 14: 20 relays, 10,000 sessions, kills at any write.
func TestRelaysThatAreKilledAtRandomSendOneReportADomainWithExactCounts(t *testing.T) {
	const relays, domains, sessions = 20, 20, 10_000
	inTeam(t, relays, func(t *testing.T, m *team) {
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		t.Logf("seed %d", seed)
		good, failed := map[string]uint64{}, map[string]uint64{}
		for i := range domains {
			m.publish(fmt.Sprintf("d%d.test", i), "https://hook.test/")
		}
		for range sessions {
			domain, bad := fmt.Sprintf("d%d.test", random.IntN(domains)), random.IntN(10) == 0
			m.relays[random.IntN(relays)].session(domain, 1, bad)
			if bad {
				failed[domain]++
			} else {
				good[domain]++
			}
		}
		kills := 0
		m.begin()
		for range 5 * 60 / 5 { // then the last reports have an hour
			time.Sleep(5 * time.Minute)
			for _, r := range m.relays {
				switch {
				case r.stop == nil: // within the hour that relays wait for others
					r.begin()
				case random.IntN(4) == 0:
					r.store.mu.Lock()
					if r.store.dieAfter = random.IntN(3); r.store.dieAfter == 0 { // else at a later write
						r.store.dead = errors.New("killed")
					}
					r.store.mu.Unlock()
					kills++
				}
				r.store.mu.Lock()
				dead := r.store.dead != nil
				r.store.mu.Unlock()
				if dead {
					r.end()
				}
			}
		}
		for _, r := range m.relays {
			if r.end(); true {
				r.begin()
			}
		}
		time.Sleep(24 * time.Hour)
		reports, gotGood, gotFailed, detailed, repeated := m.sums()
		for i := range domains {
			domain := fmt.Sprintf("d%d.test", i)
			if reports[domain] != 1 || gotGood[domain] != good[domain] || gotFailed[domain] != failed[domain] || detailed[domain] != failed[domain] {
				t.Errorf("%s: %d reports, %d and %d sessions, %d in details; want %d and %d", domain, reports[domain], gotGood[domain], gotFailed[domain], detailed[domain], good[domain], failed[domain])
			}
		}
		t.Logf("%d kills, %d reports, %d repeated with the same id", kills, len(m.got), repeated)
		if repeated > kills {
			t.Errorf("%d reports were repeated, with %d kills", repeated, kills)
		}
	})
}

func TestARelayThatDiesWithALeaseIsReplacedAndTheReportKeepsItsID(t *testing.T) {
	inTeam(t, 3, func(t *testing.T, m *team) {
		m.publish("one.test", "https://hook.test/")
		for _, r := range m.relays {
			r.session("one.test", 10, true)
			post := r.config.Post
			r.config.Post = func(ctx context.Context, url string, compressed []byte) error {
				err := post(ctx, url, compressed)
				m.mu.Lock()
				defer m.mu.Unlock()
				if len(m.got) == 1 { // accepted, and nobody is told
					r.store.kill()
				}
				return err
			}
		}
		m.begin()
		time.Sleep(24 * time.Hour)
		if _, good, failed, _, repeated := m.sums(); len(m.got) != 2 || repeated != 1 || good["one.test"]+failed["one.test"] != 30 {
			t.Errorf("%+v", m.got)
		}
	})
}

func TestWithTheEngineAwayForTheWholeWindowEachRelayReportsByItself(t *testing.T) {
	inTeam(t, 3, func(t *testing.T, m *team) {
		m.publish("one.test", "https://hook.test/")
		for _, r := range m.relays {
			r.session("one.test", 10, true)
		}
		m.away = true
		m.begin()
		time.Sleep(6 * time.Hour)
		m.wantSum("one.test", 0, 0)
		time.Sleep(3 * time.Hour)
		m.wantSum("one.test", 3, 30)
		m.hub.mu.Lock()
		m.away = false
		m.hub.mu.Unlock()
		time.Sleep(24 * time.Hour)
		m.wantSum("one.test", 3, 30) // the engine is back: nothing is sent again
		for _, r := range m.relays {
			if v := r.store.delivery(yesterday, "one.test"); !v.Alone || v.Shared {
				t.Errorf("%s: %+v", r.name, v)
			}
		}
	})
}

func TestTheEngineMayComeBackWithinTheWindow(t *testing.T) {
	inTeam(t, 3, func(t *testing.T, m *team) {
		m.publish("one.test", "https://hook.test/")
		for _, r := range m.relays {
			r.session("one.test", 10, true)
		}
		m.away = true
		m.begin()
		time.Sleep(50 * time.Minute)
		m.hub.mu.Lock()
		m.away = false
		m.hub.mu.Unlock()
		time.Sleep(24 * time.Hour)
		m.wantSum("one.test", 1, 30)
	})
}

// A relay that loses the engine after it has put its sessions cannot know.
func TestARelayThatIsCutOffReportsByItselfAndSaysThatItMayBeTwice(t *testing.T) {
	inTeam(t, 3, func(t *testing.T, m *team) {
		m.publish("one.test", "https://hook.test/")
		for _, r := range m.relays {
			r.session("one.test", 10, true)
		}
		m.begin()
		time.Sleep(20 * time.Minute)
		cut := m.relays[1]
		cut.end()
		cut.config.Fleet = end{&hub{away: true}, cut.store}
		cut.begin()
		time.Sleep(24 * time.Hour)
		m.wantSum("one.test", 2, 40)
		if v := cut.store.delivery(yesterday, "one.test"); !v.Alone || !v.Shared || v.To[0].Kind != tlsrpt.Accepted {
			t.Errorf("%+v", v)
		}
	})
}

func TestWhatTheFleetsReportLacksIsReportedByItsRelay(t *testing.T) {
	for name, bend := range map[string]func(m *team){
		"a relay that is off until the report is out": func(m *team) {
			r := m.relays[2]
			r.end()
			time.Sleep(8 * time.Hour)
			r.begin()
		},
		"a field that is not believed": func(m *team) {
			m.hub.mu.Lock()
			m.refuse = func(kind, field string) bool { return kind == "r" && field == "relay2" }
			m.hub.mu.Unlock()
		},
		"a field that is no JSON": func(m *team) {
			time.Sleep(15 * time.Minute)
			m.hub.mu.Lock()
			m.fields["r"+string(yesterday)+"one.test"]["relay2"] = "{"
			m.hub.mu.Unlock()
		},
		"sessions with too many bytes": func(m *team) {
			m.hub.mu.Lock()
			defer m.hub.mu.Unlock()
			if m.fields["r"+string(yesterday)+"one.test"]["relay2"] != "" {
				m.t.Error("they were put")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTeam(t, 3, func(t *testing.T, m *team) {
				m.publish("one.test", "https://hook.test/")
				for _, r := range m.relays {
					r.session("one.test", 10, true)
				}
				if strings.HasPrefix(name, "sessions") {
					d := m.relays[2].store.days[yesterday]["one.test"]
					for range 600 {
						d.Policies[0].Policy.Strings = append(d.Policies[0].Policy.Strings, strings.Repeat("x", 256))
					}
				}
				if !strings.HasPrefix(name, "a relay") {
					m.begin()
				} else {
					m.relays[0].begin()
					m.relays[1].begin()
				}
				bend(m)
				time.Sleep(24 * time.Hour)
				m.wantSum("one.test", 2, 30)
				if v := m.relays[2].store.delivery(yesterday, "one.test"); !v.Alone || v.Shared && strings.HasPrefix(name, "a relay") {
					t.Errorf("%+v", v)
				}
			})
		})
	}
}

// The engine cannot stop a relay's own report for ever, or have it sent without end.
func TestAnEngineThatLiesStopsNoReportForEver(t *testing.T) {
	for name, lie := range map[string]func(m *team){
		"loses what was put": func(m *team) { clear(m.fields) },
		"gives all leases away": func(m *team) {
			m.leases[string(yesterday)+"one.test"] = lease{"nobody", time.Now().Add(1000 * time.Hour)}
		},
		"has a report that is none": func(m *team) {
			m.fields["rs"+string(yesterday)+"one.test"] = map[string]string{"rs": `{"id":"x\r\nBcc: a@b.test","relays":["relay0","relay1"],"to":[{}]}`}
		},
		"has a report that nobody delivers": func(m *team) {
			m.fields["rs"+string(yesterday)+"one.test"] = map[string]string{"rs": `{"day":"` + string(yesterday) + `","domain":"one.test","id":"x","relays":["relay0","relay1"],"to":[{"kind":"planned"}]}`}
			m.leases[string(yesterday)+"one.test"] = lease{"nobody", time.Now().Add(1000 * time.Hour)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTeam(t, 2, func(t *testing.T, m *team) {
				m.publish("one.test", "https://hook.test/")
				for _, r := range m.relays {
					r.session("one.test", 10, true)
				}
				m.begin()
				time.Sleep(15 * time.Minute)
				m.hub.mu.Lock()
				lie(m)
				m.hub.mu.Unlock()
				time.Sleep(60 * time.Hour)
				m.wantSum("one.test", 2, 20)
				for _, r := range m.relays {
					if v := r.store.delivery(yesterday, "one.test"); !v.Alone || !v.Shared || v.Open() > 0 {
						t.Errorf("%s: %+v", r.name, v)
					}
				}
			})
		})
	}
}

func TestAnEngineThatPlaysAnOldStateBackHasNoReportRepeatedWithoutEnd(t *testing.T) {
	inTeam(t, 2, func(t *testing.T, m *team) {
		m.publish("one.test", "https://hook.test/", "https://hook.test/later")
		for _, r := range m.relays {
			r.session("one.test", 10, true)
			post := r.config.Post
			r.config.Post = func(ctx context.Context, url string, compressed []byte) error {
				return errors.Join(post(ctx, url, compressed), errors.New("later"))
			}
		}
		m.begin()
		var old map[string]string
		for range 14 * 24 * 6 {
			time.Sleep(10 * time.Minute)
			m.hub.mu.Lock()
			key := "rs" + string(yesterday) + "one.test"
			if old == nil {
				old = maps.Clone(m.fields[key])
			} else {
				m.fields[key] = maps.Clone(old)
			}
			m.hub.mu.Unlock()
		}
		if n := len(m.got); n > 2*2*2*8 { // relays, receivers, with the fleet and without, attempts
			t.Errorf("%d attempts", n)
		}
	})
}

func TestInAFleetTheSessionsOfAllDecideWhetherThereIsAReport(t *testing.T) {
	inTeam(t, 2, func(t *testing.T, m *team) {
		for _, r := range m.relays {
			r.config.FailuresOnly = true
			r.session("good.test", 10, false)
			r.session("one.test", 10, false)
		}
		m.relays[1].session("one.test", 1, true)
		m.publish("good.test", "https://hook.test/")
		m.publish("one.test", "https://hook.test/")
		m.begin()
		time.Sleep(24 * time.Hour)
		m.wantSum("good.test", 0, 0)
		m.wantSum("one.test", 1, 21)
		if r := m.relays[0].store.receiver(yesterday, "good.test", "https://hook.test/"); r.Kind != tlsrpt.Suppressed || r.Reason != "no failed session" {
			t.Errorf("%+v", r)
		}
	})
}

func TestSendInAFleetSendsNothingThatAnotherRelayHasSent(t *testing.T) {
	inTeam(t, 3, func(t *testing.T, m *team) {
		m.publish("one.test", "https://hook.test/")
		for _, r := range m.relays {
			r.session("one.test", 10, true)
		}
		m.begin()
		time.Sleep(15 * time.Minute)
		for _, r := range m.relays {
			r.end()
			if rows, err := r.sent(yesterday, "one.test"); err != nil || strings.Join(rows, " ") != "https://hook.test/ accepted" {
				t.Errorf("%q, %v", rows, err)
			}
		}
		m.wantSum("one.test", 1, 30)
	})
}
