package deliver_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// A memory is a store without a disk. A process that is killed is one whose writes fail.
type memory struct {
	mu         sync.Mutex
	days       map[tlsrpt.Day]map[string]tlsrpt.DomainDay
	stages     map[tlsrpt.Day]tlsrpt.Stage
	deliveries map[tlsrpt.Day]map[string]tlsrpt.Delivery
	suppressed map[string]time.Time
	dead       error            // of writes
	dieAfter   int              // writes; 0: never
	broken     map[string]error // of Load and Brief, by domain
	now        func() time.Time
}

func newMemory() *memory {
	return &memory{days: map[tlsrpt.Day]map[string]tlsrpt.DomainDay{}, stages: map[tlsrpt.Day]tlsrpt.Stage{},
		deliveries: map[tlsrpt.Day]map[string]tlsrpt.Delivery{}, now: time.Now}
}

func (m *memory) Days() ([]tlsrpt.Day, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.days)), nil
}

func (m *memory) Stage(day tlsrpt.Day) (tlsrpt.Stage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stages[day] == tlsrpt.StageOpen && !m.now().Before(day.End().Add(10*time.Minute)) {
		return tlsrpt.StageClosed, nil
	}
	return m.stages[day], nil
}

func (m *memory) SetStage(day tlsrpt.Day, stage tlsrpt.Stage) error {
	return m.write(func() { m.stages[day] = stage })
}

func (m *memory) EachDomain(days []tlsrpt.Day, _ string, each func(string, [][]tlsrpt.Summary) bool) (bool, error) {
	m.mu.Lock()
	known := maps.Clone(m.days[days[0]])
	m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(known)) {
		if !each(name, [][]tlsrpt.Summary{known[name].Policies}) {
			return false, nil
		}
	}
	return true, nil
}

func (m *memory) Load(day tlsrpt.Day, domain string) (tlsrpt.DomainDay, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.days[day][domain], m.broken[domain]
}

func (m *memory) Brief(day tlsrpt.Day, domain string, _ int) ([]tlsrpt.Summary, error) {
	d, err := m.Load(day, domain)
	return d.Policies, err
}

func (m *memory) Deliveries(day tlsrpt.Day, f func(tlsrpt.Delivery) error) error {
	m.mu.Lock()
	known := maps.Clone(m.deliveries[day])
	m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(known)) {
		if err := f(copied(known[name])); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) Delivery(day tlsrpt.Day, domain string) (tlsrpt.Delivery, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copied(m.deliveries[day][domain]), nil
}

func (m *memory) PutDeliveries(list ...tlsrpt.Delivery) error {
	return m.write(func() {
		for _, v := range list {
			if m.deliveries[v.Day] == nil {
				m.deliveries[v.Day] = map[string]tlsrpt.Delivery{}
			}
			m.deliveries[v.Day][v.Domain] = copied(v)
		}
	})
}

func (m *memory) write(f func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead != nil {
		return m.dead
	}
	if m.dieAfter--; m.dieAfter == 0 {
		m.dead = errors.New("killed")
	}
	f()
	return nil
}

func copied(v tlsrpt.Delivery) tlsrpt.Delivery {
	v.To = slices.Clone(v.To)
	return v
}

func (m *memory) Suppressed() (map[string]time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.suppressed), nil
}

// kill has all writes fail from now on.
func (m *memory) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = errors.New("killed")
}

// delivery returns a delivery.
func (m *memory) delivery(day tlsrpt.Day, domain string) tlsrpt.Delivery {
	v, _ := m.Delivery(day, domain)
	return v
}

// receiver returns a receiver of a delivery; without a URI that of a report with no known
// receiver.
func (m *memory) receiver(day tlsrpt.Day, domain, uri string) tlsrpt.Receiver {
	for _, r := range m.delivery(day, domain).To {
		if r.URI == uri {
			return r
		}
	}
	return tlsrpt.Receiver{}
}

func (m *memory) stage(day tlsrpt.Day) tlsrpt.Stage {
	stage, _ := m.Stage(day)
	return stage
}

// kinds counts the receivers of a day that are known.
func (m *memory) kinds(day tlsrpt.Day) map[tlsrpt.StateKind]int {
	count := map[tlsrpt.StateKind]int{}
	_ = m.Deliveries(day, func(v tlsrpt.Delivery) error {
		for _, r := range v.To {
			if r.URI != "" {
				count[r.Kind]++
			}
		}
		return nil
	})
	return count
}

// yesterday is the day before the first day of a bubble.
const yesterday = tlsrpt.Day("1999-12-31")

// A parcel is a report that was handed over.
type parcel struct {
	at   time.Time
	to   string // an address or a URL
	id   string
	text string
}

// A world is a store, a DNS and receivers, in a bubble of synctest.
type world struct {
	t      *testing.T
	store  *memory
	config deliver.Config

	mu      sync.Mutex
	records map[string]string                            // by domain
	query   func(ctx context.Context, name string) error // before the answer
	receive func(ctx context.Context, p parcel) error    // nil: accepted
	tried   []parcel
	log     strings.Builder
}

// inWorld runs f in a bubble, which begins at midnight.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r, err := report.New(report.Config{Organization: "Test", Contact: "tls@reporter.test"})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, store: newMemory(), records: map[string]string{}}
		w.config = deliver.Config{
			Store: w.store, Resolver: w, Reporter: r, Window: 4 * time.Hour, MaxPerDestination: 1000, Log: slog.New(slog.NewTextHandler(lockedWriter{w}, nil)),
			Mail: func(ctx context.Context, from, to string, message []byte) error {
				_, id, _ := strings.Cut(string(message), "Report-ID: <")
				id, _, _ = strings.Cut(id, ">")
				return w.got(ctx, parcel{time.Now(), to, id, string(message)})
			},
			Post: func(ctx context.Context, url string, compressed []byte) error {
				return w.got(ctx, parcel{time.Now(), url, "", string(compressed)})
			},
		}
		f(t, w)
	})
}

type lockedWriter struct{ w *world }

func (l lockedWriter) Write(b []byte) (int, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.w.log.Write(b)
}

func (w *world) Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	if w.query != nil {
		if err := w.query(ctx, name); err != nil {
			return nil, err
		}
	}
	answer := &resolver.Answer{Name: name}
	w.mu.Lock()
	defer w.mu.Unlock()
	if record, ok := w.records[strings.TrimPrefix(name, "_smtp._tls.")]; ok && qtype == resolver.TypeTXT {
		answer.Texts = []string{record}
	}
	return answer, nil
}

func (w *world) got(ctx context.Context, p parcel) error {
	w.mu.Lock()
	w.tried = append(w.tried, p)
	receive := w.receive
	w.mu.Unlock()
	if receive == nil {
		return nil
	}
	return receive(ctx, p)
}

// parcels returns what was tried so far.
func (w *world) parcels() []parcel {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.tried)
}

// add stores a domain's day with some successful sessions and one failed one, and the
// URIs of its record; none: it has no record.
func (w *world) add(day tlsrpt.Day, domain string, sessions uint64, rua ...string) {
	if w.store.days[day] == nil {
		w.store.days[day] = map[string]tlsrpt.DomainDay{}
	}
	w.store.days[day][domain] = tlsrpt.DomainDay{Domain: domain, Day: day, Policies: []tlsrpt.Summary{{
		Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: domain}, Successful: sessions - 1, Failed: 1,
		Details: []tlsrpt.Detail{{Failure: tlsrpt.Failure{Result: tlsrpt.StartTLSNotSupported}, Sessions: 1}},
	}}}
	w.publish(domain, rua...)
}

// publish sets the record of a domain.
func (w *world) publish(domain string, rua ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.records, domain)
	if len(rua) > 0 {
		w.records[domain] = "v=TLSRPTv1; rua=" + strings.Join(rua, ",")
	}
}

// run runs a new process for a time.
func (w *world) run(d time.Duration) *deliver.Deliverer {
	ctx, cancel := context.WithTimeout(w.t.Context(), d)
	defer cancel()
	deliverer := deliver.New(w.config)
	deliverer.Run(ctx)
	return deliverer
}

// want checks the kind of a domain's receivers; without URIs, that of a report with no
// known receiver.
func (w *world) want(domain string, kind tlsrpt.StateKind, uris ...string) {
	w.t.Helper()
	if len(uris) == 0 {
		uris = []string{""}
	}
	for _, uri := range uris {
		if r := w.store.receiver(yesterday, domain, uri); r.Kind != kind {
			w.t.Errorf("%s %q is %+v; want %s", domain, uri, r, kind)
		}
	}
}
