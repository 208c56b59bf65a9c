// Package observe turns what happened in the daemon into the conditions in which
// an operator has to act, metrics for Prometheus, and the status page. The packages
// that do the work count for themselves, in their Stats; observe reads these when
// somebody asks. What nobody counts, how discoveries and refreshes went, comes
// through the keeper's hook for observers.
//
// Whoever asks, nothing here sends a packet or writes to the cache, and the work
// for one request is bounded, whatever the size of the cache.
//
// Left out: what keeps the daemon from starting, which is the error it ends with;
// and what is wrong with one domain, which is in the log and in -explain.
package observe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
)

// The limits of the metrics listener. docs/limits.md lists them.
const (
	maxConnections = 32               // more clients wait
	requestTimeout = 10 * time.Second // for a request to arrive
	writeTimeout   = 15 * time.Second // from a request's arrival until the client has taken the answer
	idleTimeout    = time.Minute
	maxHeader      = 16 << 10 // bytes of a request's header
)

// Stats are what the daemon's packages count.
type Stats struct {
	Keeper  keeper.Stats
	Cache   cache.Stats
	Maps    tlsmap.Stats
	Sockets socketmap.Stats
	DANE    dane.Stats
	Reports reporting.Stats
	Fleet   fleet.Stats
}

// time is the time by which policies live, when the clock says now.
func (s *Stats) time(now time.Time) time.Time {
	return now.Add(-time.Duration(s.Keeper.ClockOff) * time.Second)
}

// Sources are what an Observer reads. The functions are called from the first
// request on, not by New.
type Sources struct {
	Version, Commit string
	Host            string // this machine's name
	Started         time.Time

	Stats func() Stats // called often: must be quick
	// Roots reads the certificate authorities again, as the next start would.
	Roots func() error
	Held  func(domain string) (control.Held, error)
	// List returns policies in the order of their domains, as keeper.Keeper's.
	List func(after string, limit int) (page []cache.Record, next string, err error)
	TLS  func() (reporting.Overview, error)
	Log  *slog.Logger
}

// An Observer observes one daemon.
type Observer struct {
	Sources
	attempts attempts
	failures failures
	server   http.Server

	looking sync.Mutex      // held by a look
	holding map[string]bool // conditions at the last look

	mu       sync.Mutex
	rootsErr error // of the last reading

	listing sync.Mutex // held while policies are read for a list
}

// New returns an Observer.
func New(s Sources) *Observer {
	o := &Observer{Sources: s, attempts: newAttempts(), failures: newFailures()}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", o.Metrics())
	mux.HandleFunc("GET /{$}", o.serveOverview)
	mux.HandleFunc("GET /policies", o.servePolicies)
	mux.HandleFunc("GET /tls", o.serveTLS)
	mux.HandleFunc("GET /style.css", static("text/css; charset=utf-8", styleCSS))
	mux.HandleFunc("GET /icon.svg", static("image/svg+xml", iconSVG))
	o.server = http.Server{
		Handler:           refuseRebinding(mux),
		ReadHeaderTimeout: requestTimeout, ReadTimeout: requestTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		// A client can break its connection as often as it likes.
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	return o
}

// Observe takes note of what the keeper tried; it is keeper.Options.Observe.
func (o *Observer) Observe(e keeper.Event) {
	o.attempts.count(e)
	o.failures.note(e)
}

// ServeHTTP answers requests for /metrics and the status page.
func (o *Observer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.server.Handler.ServeHTTP(w, r)
}

// Serve serves /metrics, and the status page at /, on l until Shutdown, and then
// returns nil. It closes l.
func (o *Observer) Serve(l net.Listener) error {
	if err := o.server.Serve(netutil.LimitListener(l, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics listener: %w", err)
	}
	return nil
}

// Shutdown stops listening, waits for answers under way until ctx ends, and then
// closes all connections.
func (o *Observer) Shutdown(ctx context.Context) error {
	if err := o.server.Shutdown(ctx); err != nil {
		return o.server.Close()
	}
	return nil
}

// refuseRebinding answers on loopback only if asked by address or as localhost.
// Any other name may be one that a web site points at 127.0.0.1, to read this
// through the operator's browser (DNS rebinding).
func refuseRebinding(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
		if ok && local.IP.IsLoopback() && !isLocalName(r.Host) {
			http.Error(w, "on loopback, ask by address or as localhost: another name may be DNS rebinding", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func isLocalName(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || strings.EqualFold(host, "localhost")
}
