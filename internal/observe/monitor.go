package observe

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
)

// lookEvery is how often a Monitor looks.
const lookEvery = 30 * time.Second

// A Monitor looks now and then, and logs what begins and what ends.
type Monitor struct {
	signs func() Signs // without Roots
	roots func() error
	log   *slog.Logger

	mu       sync.Mutex
	rootsErr error

	looking sync.Mutex // held by a look
	holding map[string]bool
}

// NewMonitor returns a Monitor. signs is asked often and must be quick; roots
// reads the certificate authorities again, and is asked by Run.
func NewMonitor(signs func() Signs, roots func() error, log *slog.Logger) *Monitor {
	return &Monitor{signs: signs, roots: roots, log: log, holding: make(map[string]bool)}
}

// Troubles returns the conditions that hold now.
func (m *Monitor) Troubles() []control.Trouble {
	s := m.signs()
	m.mu.Lock()
	s.Roots = m.rootsErr
	m.mu.Unlock()
	return s.Troubles()
}

// Run looks until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		m.Look()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Look logs the conditions that are news: one line when one begins, unless
// those who noticed have written it, and one when it ends. Run does it now and
// then; at a reload somebody wants to know at once.
func (m *Monitor) Look() {
	m.looking.Lock()
	defer m.looking.Unlock()
	err := m.roots()
	m.mu.Lock()
	m.rootsErr = err
	m.mu.Unlock()

	now := make(map[string]bool)
	for _, t := range m.Troubles() {
		now[t.Condition] = true
		if !m.holding[t.Condition] && !t.Told {
			m.log.Error(t.What, "condition", t.Condition, "next", t.Next)
		}
	}
	for _, c := range Conditions() {
		if m.holding[c] && !now[c] {
			m.log.Info("the trouble is over", "condition", c)
		}
	}
	m.holding = now
}
