package observe

import (
	"log/slog"
	"math"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/collect"
)

// Prefix is how the name of every metric of ours begins.
const Prefix = "sts_tlsmap_"

const (
	scrapesAtOnce = 4 // one more is refused with 503
	scrapeTimeout = 10 * time.Second
)

// A metric is read at each scrape.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(s *scrape, put put)
}

// A scrape is what one scrape reads.
type scrape struct {
	Stats
	o *Observer
}

// put adds a sample to a metric, with the values of its labels.
type put func(v float64, labels ...string)

type number interface{ int | int64 | uint64 | float64 }

func define(kind prometheus.ValueType, name, help string, labels []string, read func(*scrape, put)) metric {
	return metric{prometheus.NewDesc(Prefix+name, help, labels, nil), kind, read}
}

func gauge[N number](name, help string, read func(*scrape) N) metric {
	return define(prometheus.GaugeValue, name, help, nil, func(s *scrape, put put) { put(float64(read(s))) })
}

func counter[N number](name, help string, read func(*scrape) N) metric {
	return define(prometheus.CounterValue, name, help, nil, func(s *scrape, put put) { put(float64(read(s))) })
}

func gauges(name, help, label string, read func(*scrape, put)) metric {
	return define(prometheus.GaugeValue, name, help, []string{label}, read)
}

func counters(name, help, label string, read func(*scrape, put)) metric {
	return define(prometheus.CounterValue, name, help, []string{label}, read)
}

// metrics are the metrics read from Stats. A test compares docs/metrics.md with them.
// Label values come from the program and the configuration, never from the network, so
// the number of series is bounded.
var metrics = []metric{
	define(prometheus.GaugeValue, "build_info", "Always 1; the labels say what runs.", []string{"version", "commit", "goversion"},
		func(s *scrape, put put) { put(1, s.o.Version, s.o.Commit, runtime.Version()) }),
	// The Go collector's own needs /proc/stat, which the packages' unit hides.
	gauge("start_time_seconds", "When the daemon started, in Unix time.",
		func(s *scrape) float64 { return float64(s.o.Started.UnixMilli()) / 1000 }),
	gauges("trouble", "1 while a condition holds that an operator must correct; -check says how.", "condition", readTroubles),

	define(prometheus.CounterValue, "lookups_total", "Lookups by map and reply; rehearsed ones were answered NOTFOUND.", []string{"map", "result"}, readLookups),
	counter("unknown_map_lookups_total", "Lookups in maps that do not exist; they were answered PERM.", func(s *scrape) uint64 { return s.Maps.UnknownMap }),
	counter("negative_hits_total", "Lookups of domains that are remembered to have no policy.", func(s *scrape) int64 { return s.Keeper.NegativeHits }),
	counter("lookup_timeouts_total", "Lookups that were answered before their discovery ended.", func(s *scrape) int64 { return s.Keeper.DiscoveryTimeouts }),
	counter("discovery_overloads_total", "Discoveries that found no free place in time.", func(s *scrape) int64 { return s.Keeper.Overloads }),

	gauges("policies", "Policies in the cache by mode; an expired policy stays for a week.", "mode", func(s *scrape, put put) {
		for mode, n := range s.Cache.ByMode {
			put(float64(n), modeName(policy.Mode(mode)))
		}
	}),
	gauge("cache_used_bytes", "Bytes of the cache that are in use.", func(s *scrape) int64 { return s.Cache.UsedSize }),
	gauge("cache_file_bytes", "Bytes of the cache file, which does not shrink.", func(s *scrape) int64 { return s.Cache.FileSize }),
	gauge("cache_max_bytes", "Bytes that may be in use: max_size in [cache].", func(s *scrape) int64 { return s.Cache.MaxSize }),
	gauge("cache_newest_timestamp_seconds", "The clock at the last write to the cache, 0 if there was none.", func(s *scrape) int64 {
		if s.Cache.Heartbeat.IsZero() {
			return 0
		}
		return s.Cache.Heartbeat.Unix()
	}),
	counter("cache_damaged_values_total", "Stored policies that could not be read.", func(s *scrape) uint64 { return s.Cache.Damaged }),
	counter("cache_faults_total", "Faults while the cache file was read or written.", func(s *scrape) uint64 { return s.Cache.Unreadable }),
	gauge("cache_lost_policies", "Policies that the last salvage of the cache since the start could not save; NaN: not known.", lostPolicies),
	counter("cache_errors_total", "Reads of the cache that failed.", func(s *scrape) int64 { return s.Keeper.StoreErrors }),

	gauge("memory_policies", "Policies in memory.", func(s *scrape) int { return s.Keeper.TableEntries }),
	gauge("memory_bytes", "Bytes of the policies in memory.", func(s *scrape) int64 { return s.Keeper.TableBytes }),
	gauge("memory_negatives", "Domains that are remembered to have no policy or to fail.", func(s *scrape) int { return s.Keeper.Negatives }),
	gauge("discoveries_in_progress", "Discoveries and refreshes under way.", func(s *scrape) int { return s.Keeper.Discovering }),
	gauges("queue_length", "Entries in the daemon's queues.", "queue", func(s *scrape, put put) {
		put(float64(s.Keeper.Pending), "writes")
		put(float64(s.Keeper.RecheckQueue), "rechecks")
		put(float64(s.Fleet.Pending), "fleet")
	}),
	gauge("late_writes", "Changes that are answered from memory, because the disk is slow or full.", func(s *scrape) int64 { return s.Keeper.Late }),
	counter("failed_commits_total", "Commits to the cache that failed.", func(s *scrape) int64 { return s.Keeper.WritesFailed }),
	counters("policies_not_kept_total", "Policies that were answered and not stored, by reason.", "reason", func(s *scrape, put put) {
		put(float64(s.Keeper.NotKept), "queue-full")
		put(float64(s.Keeper.Refused), "cache-full")
	}),
	counter("rechecks_total", "TXT checks caused by lookups of held policies.", func(s *scrape) int64 { return s.Keeper.Rechecks }),
	counters("dropped_total", "Work and log lines dropped because a queue or a rate was at its limit.", "what", func(s *scrape, put put) {
		put(float64(s.Keeper.RechecksDropped), "recheck")
		put(float64(s.Keeper.LogLinesDropped), "log-line")
	}),
	counters("panics_total", "Panics that the daemon survived. Each is a bug; the log has the details.", "in", func(s *scrape, put put) {
		put(float64(s.Keeper.Panics), "keeper")
		put(float64(s.DANE.Panics), "dane")
		put(float64(s.Sockets.Panics), "lookup")
		put(float64(s.Reports.Collect.Panics), "tls-reports")
	}),
	gauge("refresh_lateness_seconds", "How late the refresher is.", func(s *scrape) int64 { return s.Keeper.LateSeconds }),

	counters("dane_findings_total", "DANE checks of next-hops by result.", "state", func(s *scrape, put put) {
		for state, n := range s.DANE.Findings {
			put(float64(n), dane.State(state).String())
		}
	}),
	gauge("dane_next_hops", "Next-hops whose DANE state is in memory.", func(s *scrape) int { return s.DANE.Held }),
	gauge("dane_kept_next_hops", "Next-hops that keep the DANE they had, although no answer confirms it now.", func(s *scrape) int { return s.DANE.Kept }),
	gauge("dane_checks_in_progress", "DANE checks and MX lookups under way.", func(s *scrape) int { return s.DANE.Checking }),
	gauges("resolver_verdict", "1 for the result of the last probe of the resolver.", "verdict", func(s *scrape, put put) {
		is := map[dane.Verdict]float64{s.DANE.Verdict: 1}
		for _, v := range []dane.Verdict{dane.Validates, dane.NoAD, dane.FalseAD, dane.NotBelieved, dane.NoVerdict} {
			put(is[v], v.Name())
		}
	}),

	define(prometheus.CounterValue, "tls_sessions_total", "TLS sessions that MTAs told of, for TLS reports, by MTA and result.", []string{"mta", "result"},
		func(s *scrape, put put) {
			for from, n := range s.Reports.Collect.From {
				put(float64(n.Successful), collect.Source(from).String(), "success")
				put(float64(n.Failed), collect.Source(from).String(), "failure")
			}
		}),
	define(prometheus.CounterValue, "tls_sessions_dropped_total", "Datagrams, sessions and parts of them that TLS reports leave out, by reason.", []string{"at", "reason"},
		func(s *scrape, put put) {
			for at, dropped := range map[string]map[string]uint64{"intake": s.Reports.Collect.Dropped, "store": s.Reports.Store.Dropped, "policies": {"queue-full": s.Reports.Lost}} {
				for reason, n := range dropped {
					put(float64(n), at, reason)
				}
			}
		}),
	gauges("tls_sessions_waiting_bytes", "Bytes of TLS sessions that wait to be parsed (intake), or to be merged into their day (log).", "at", func(s *scrape, put put) {
		put(float64(s.Reports.Collect.RingSize), "intake")
		put(float64(s.Reports.Store.LogSize), "log")
	}),
	gauge("tls_newly_failing_destinations", "Destinations whose TLS sessions began to fail today or yesterday, those marked new by -tls.", func(s *scrape) int { return s.Reports.NewlyFailing }),
	gauge("tls_reports_store_bytes", "Bytes of the store of TLS reports that are in use.", func(s *scrape) int64 { return s.Reports.Store.UsedSize }),
	counters("tls_reports_total", "TLS reports by what came of an attempt to deliver them; planned: it is repeated.", "state", func(s *scrape, put put) {
		for _, state := range []tlsrpt.StateKind{tlsrpt.Planned, tlsrpt.Accepted, tlsrpt.Refused, tlsrpt.Expired, tlsrpt.Suppressed} {
			put(float64(s.Reports.Deliver.Reports[state]), string(state))
		}
	}),
	gauge("tls_reports_open", "Records to ask for and TLS reports to deliver.", func(s *scrape) int { return s.Reports.Deliver.Open }),
	gauge("tls_reports_oldest_timestamp_seconds", "The end of the first day with a TLS report that is not delivered; 0: there is none.", func(s *scrape) int64 {
		if s.Reports.Deliver.Oldest.IsZero() {
			return 0
		}
		return s.Reports.Deliver.Oldest.Unix()
	}),

	gauge("fleet_up", "1 while the fleet's server serves this relay; 0: it does not, or there is no fleet.", func(s *scrape) int {
		if s.Fleet.On && s.Fleet.Trouble == "" {
			return 1
		}
		return 0
	}),
	gauge("fleet_relays", "Relays of the fleet seen within three days, this one included.", func(s *scrape) int { return s.Fleet.Relays }),
	gauge("fleet_latency_seconds", "Time that the fleet's server took for the last write.", func(s *scrape) float64 { return s.Fleet.Latency.Seconds() }),
	gauge("fleet_clock_offset_seconds", "How far this relay's clock is ahead of that of the fleet's server.", func(s *scrape) float64 { return s.Fleet.ClockOff.Seconds() }),
	counters("fleet_questions_total", "Questions to the fleet's server for a policy: all, those that found one, and those without an answer.", "what", func(s *scrape, put put) {
		put(float64(s.Fleet.Asked), "asked")
		put(float64(s.Fleet.Found), "found")
		put(float64(s.Fleet.Failed), "failed")
	}),
	counters("fleet_policies_total", "Policies written to the fleet's server, dropped on the way there, adopted from it, or different from this relay's own.", "what",
		func(s *scrape, put put) {
			put(float64(s.Fleet.Written), "written")
			put(float64(s.Fleet.Dropped), "dropped")
			put(float64(s.Keeper.Adopted), "adopted")
			put(float64(s.Keeper.NotAdopted), "not-adopted")
			put(float64(s.Fleet.Differ), "differ")
		}),
	counters("fleet_refused_total", "Values of the fleet's server that were not believed, by reason.", "reason", func(s *scrape, put put) {
		for _, reason := range fleet.Reasons {
			put(float64(s.Fleet.Refused[reason]), string(reason))
		}
	}),

	gauge("connections", "Connections open from MTAs.", func(s *scrape) int { return s.Sockets.Open }),
	counter("connections_total", "Connections accepted from MTAs.", func(s *scrape) uint64 { return s.Sockets.Accepted }),
	counters("connections_closed_total", "Connections closed by the daemon before their client did, by reason.", "reason", func(s *scrape, put put) {
		put(float64(s.Sockets.Evicted), "evicted")
		put(float64(s.Sockets.Malformed), "malformed")
		put(float64(s.Sockets.Slow), "slow")
	}),
	counter("requests_total", "Requests received on the socketmap.", func(s *scrape) uint64 { return s.Sockets.Requests }),
}

// lookupDuration is the one histogram that is made from Stats.
var lookupDuration = prometheus.NewDesc(Prefix+"lookup_duration_seconds",
	"Time to the reply. Lookups answered from memory are not timed, and counted in the smallest bucket with no time.", []string{"map"}, nil)

// modeName is a mode as a label. A record of mode 0 is one that cannot be read.
func modeName(m policy.Mode) string {
	if m == 0 {
		return "unreadable"
	}
	return m.String()
}

func readTroubles(s *scrape, put put) {
	holds := make(map[string]float64)
	for _, t := range s.o.Troubles() {
		holds[t.Condition] = 1
	}
	names, _ := Conditions()
	for _, name := range names {
		put(holds[name], name)
	}
}

func readLookups(s *scrape, put put) {
	for _, m := range s.Maps.Maps {
		for result, n := range m.By {
			put(float64(n), m.Map, result)
		}
	}
}

func lostPolicies(s *scrape) float64 {
	r := s.Cache.Salvage
	switch {
	case r == nil:
		return 0
	case r.Lost < 0:
		return math.NaN()
	}
	return float64(r.Lost)
}

// durations returns the histogram of a map's lookups.
func durations(m *tlsmap.MapStats) prometheus.Metric {
	var slow uint64
	for _, n := range m.Slow {
		slow += n
	}
	below := m.Replies() - min(slow, m.Replies()) // those from memory
	buckets := make(map[float64]uint64, len(tlsmap.SlowBounds))
	for i, bound := range tlsmap.SlowBounds {
		below += m.Slow[i]
		buckets[bound.Seconds()] = below
	}
	return prometheus.MustNewConstHistogram(lookupDuration, m.Replies(), m.SlowSum.Seconds(), buckets, m.Map)
}

// A collector reads an Observer's Stats.
type collector struct{ o *Observer }

// Describe is prometheus.Collector's.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- lookupDuration
	for _, m := range metrics {
		ch <- m.desc
	}
}

// Collect is prometheus.Collector's.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := &scrape{Stats: c.o.Stats(), o: c.o}
	for _, m := range metrics {
		m.read(s, func(v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, labels...)
		})
	}
	for i := range s.Maps.Maps {
		ch <- durations(&s.Maps.Maps[i])
	}
}

// attempts count what the keeper tried.
type attempts struct {
	total   *prometheus.CounterVec
	took    *prometheus.HistogramVec
	changes *prometheus.CounterVec
}

func newAttempts() attempts {
	return attempts{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: Prefix + "attempts_total",
			Help: "Discoveries, checks of TXT records and fetches of held policies, by result in the terms of RFC 8460.",
		}, []string{"step", "result"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: Prefix + "attempt_duration_seconds",
			Help: "Time that discoveries, checks and fetches took.",
			// From an answer near by to the longest fetch.timeout and what surrounds it.
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300},
		}, []string{"step"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: Prefix + "policy_changes_total",
			Help: "Policies found for the first time (discovery) or with another text than before (fetch), by their mode.",
		}, []string{"step", "mode"}),
	}
}

func (a *attempts) count(e keeper.Event) {
	a.total.WithLabelValues(string(e.Step), string(e.Result)).Inc()
	a.took.WithLabelValues(string(e.Step)).Observe(e.Took.Seconds())
	if e.Changed {
		a.changes.WithLabelValues(string(e.Step), e.Mode.String()).Inc()
	}
}

// Metrics returns a handler that answers scrapes.
func (o *Observer) Metrics() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(o.attempts.total, o.attempts.took, o.attempts.changes, collector{o},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		DisableCompression:  true, // of a few KiB, from this machine
		MaxRequestsInFlight: scrapesAtOnce,
		Timeout:             scrapeTimeout,
	})
}
