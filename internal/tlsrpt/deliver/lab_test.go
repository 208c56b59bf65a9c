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
	rows       map[tlsrpt.Day][]tlsrpt.State // in the order of keys
	suppressed map[string]time.Time
	dead       error            // of writes
	dieAfter   int              // writes; 0: never
	broken     map[string]error // of Load, by domain
}

func (m *memory) Days() ([]tlsrpt.Day, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.days)), nil
}

func (m *memory) Closed(day tlsrpt.Day, now time.Time) (bool, error) {
	return !now.Before(day.End().Add(10 * time.Minute)), nil
}

func (m *memory) Domains(day tlsrpt.Day, after string, limit int) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(m.days[day])), func(name string) bool { return name <= after })
	return names[:min(limit, len(names))], nil
}

func (m *memory) Load(day tlsrpt.Day, domain string) (tlsrpt.DomainDay, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.days[day][domain], m.broken[domain]
}

func (m *memory) States(day tlsrpt.Day, domain string) ([]tlsrpt.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, _ := m.find(day, tlsrpt.State{Domain: domain}.Key())
	end := at
	for end < len(m.rows[day]) && m.rows[day][end].Domain == domain {
		end++
	}
	return slices.Clone(m.rows[day][at:end]), nil
}

func (m *memory) PutStates(rows []tlsrpt.State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead != nil {
		return m.dead
	}
	if m.dieAfter--; m.dieAfter == 0 {
		m.dead = errors.New("killed")
	}
	added := map[tlsrpt.Day][]tlsrpt.State{}
	for _, row := range rows {
		if at, found := m.find(row.Day, row.Key()); found {
			m.rows[row.Day][at] = row
		} else {
			added[row.Day] = append(added[row.Day], row)
		}
	}
	for day, rows := range added {
		m.rows[day] = append(m.rows[day], rows...)
		slices.SortFunc(m.rows[day], func(a, b tlsrpt.State) int { return strings.Compare(a.Key(), b.Key()) })
	}
	return nil
}

func (m *memory) find(day tlsrpt.Day, key string) (at int, found bool) {
	return slices.BinarySearchFunc(m.rows[day], key, func(row tlsrpt.State, key string) int { return strings.Compare(row.Key(), key) })
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

// row returns a row; the domain's own without a destination.
func (m *memory) row(day tlsrpt.Day, domain, destination string) tlsrpt.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at, found := m.find(day, tlsrpt.State{Domain: domain, Destination: destination}.Key()); found {
		return m.rows[day][at]
	}
	return tlsrpt.State{}
}

// kinds counts the rows of destinations.
func (m *memory) kinds(day tlsrpt.Day) map[tlsrpt.StateKind]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	count := map[tlsrpt.StateKind]int{}
	for _, row := range m.rows[day] {
		if row.Destination != "" {
			count[row.Kind]++
		}
	}
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
		w := &world{t: t, store: &memory{days: map[tlsrpt.Day]map[string]tlsrpt.DomainDay{}, rows: map[tlsrpt.Day][]tlsrpt.State{}}, records: map[string]string{}}
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

// want checks the kind of a domain's rows: its own, and those of its destinations.
func (w *world) want(domain string, kind tlsrpt.StateKind, destinations ...string) {
	w.t.Helper()
	for _, destination := range append([]string{""}, destinations...) {
		if row := w.store.row(yesterday, domain, destination); row.Kind != kind {
			w.t.Errorf("%s %q is %+v; want %s", domain, destination, row, kind)
		}
	}
}
