// Package observe is the one place for what is observed: the conditions in
// which an operator has to act, the metrics for Prometheus, and the status page.
// The packages that do the work count for themselves, in their Stats; these are
// read at each scrape. What they do not count, how discoveries and refreshes
// went, comes through the keeper's hook for observers.
//
// No label holds a domain, an address or anything else from the network, so the
// number of series has a bound. The page is plain HTML, CSS and SVG without any
// script. Whoever asks, nothing here sends a packet or writes.
//
// Left out: what keeps the daemon from starting, which is the error it ends with;
// and what is wrong with one domain, which is in the log and in -explain.
package observe

import (
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// Sources are where the numbers come from. Each is called at every scrape.
type Sources struct {
	Version, Commit string
	Started         time.Time

	Keeper   func() keeper.Stats
	Cache    func() cache.Stats
	Maps     func() tlsmap.Stats
	Sockets  func() socketmap.Stats
	DANE     func() dane.Stats
	Troubles func() []control.Trouble
	// List returns records in the order of their domains, after one.
	List func(after string, limit int) (list []cache.Record, next string, err error)

	Log *slog.Logger // nil: none
}

// Metrics are the metrics of one daemon. Observe may be called before Serves
// has the sources, which are made from what is observed.
type Metrics struct {
	registry *prometheus.Registry
	attempts *prometheus.CounterVec
	took     *prometheus.HistogramVec
	changes  *prometheus.CounterVec
}

// attemptBounds are in seconds: from an answer near by to the end of every
// patience, fetch.timeout at its most and what surrounds it.
var attemptBounds = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300}

// New returns metrics without sources.
func New() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: Prefix + "attempts_total",
			Help: "Discoveries, checks of TXT records and fetches of held policies, by result in the terms of RFC 8460.",
		}, []string{"step", "result"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    Prefix + "attempt_duration_seconds",
			Help:    "Time that discoveries, checks and fetches took.",
			Buckets: attemptBounds,
		}, []string{"step"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: Prefix + "policy_changes_total",
			Help: "Policies found for the first time (discovery) or with another text than before (fetch), by their mode.",
		}, []string{"step", "mode"}),
	}
	m.registry.MustRegister(m.attempts, m.took, m.changes,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Observe counts what the keeper tried; it is keeper.Options.Observe.
func (m *Metrics) Observe(e keeper.Event) {
	m.attempts.WithLabelValues(string(e.Step), string(e.Result)).Inc()
	m.took.WithLabelValues(string(e.Step)).Observe(e.Took.Seconds())
	if e.Changed {
		m.changes.WithLabelValues(string(e.Step), e.Mode.String()).Inc()
	}
}

// Handler answers scrapes with the numbers of the sources. It may be made
// once.
func (m *Metrics) Handler(s Sources) http.Handler {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	m.registry.MustRegister(&collector{Sources: s, ages: ageSample{list: s.List, now: time.Now}})
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
		// What can be told is told.
		ErrorHandling:       promhttp.ContinueOnError,
		DisableCompression:  true, // of a few KiB, from this machine
		MaxRequestsInFlight: scrapesAtOnce,
		Timeout:             scrapeTimeout,
	})
}

// A collector reads the sources.
type collector struct {
	Sources
	ages ageSample
}

// Describe is prometheus.Collector's.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	o := out(ch)
	o.gauge(buildInfo, 1, c.Version, c.Commit, runtime.Version())
	// The process's own needs the machine's start from /proc/stat, which the
	// packages' unit hides.
	o.gauge(startTime, float64(c.Started.UnixMilli())/1000)
	c.collectTroubles(o)
	maps := c.Maps()
	o.counter(unknownMaps, maps.UnknownMap)
	for i := range maps.Maps {
		collectMap(o, &maps.Maps[i])
	}
	collectCache(o, c.Cache())
	c.ages.collect(o)
	collectKeeper(o, c.Keeper())
	collectDANE(o, c.DANE())
	collectSockets(o, c.Sockets())
}

// out takes metrics.
type out chan<- prometheus.Metric

func (o out) gauge(d *prometheus.Desc, v float64, labels ...string) {
	o <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (o out) counter(d *prometheus.Desc, v uint64, labels ...string) {
	o <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

// oneOf is a gauge of 1 for the name that is meant, and 0 for the others.
func (o out) oneOf(d *prometheus.Desc, name string, names ...string) {
	for _, n := range names {
		v := 0.0
		if n == name {
			v = 1
		}
		o.gauge(d, v, n)
	}
}
