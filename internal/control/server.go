package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/httpserver"
)

// Options are what a Server answers from.
type Options struct {
	Keeper  Keeper
	Health  func() Health
	Stats   func() any               // made into JSON
	Metrics http.Handler             // nil: there are none
	Exempt  func(domain string) bool // nil: none is
	Log     *slog.Logger

	Learner     Learner
	Exemptions  Exemptions                      // those set at run time; nil: there are none
	ExemptUntil func(domain string) time.Time   // zero: for good, or not at all; nil: there are no ends
	Rehearsed   func(domain string) []Rehearsed // of all, if empty; nil: nothing is

	// ExemptBy returns the entries that exempt a domain, an Until of zero: for
	// good; nil: they are not known.
	ExemptBy func(domain string) []exempt.Exemption

	// DANE returns what is held of the next-hops of that name; nil: nothing is.
	DANE func(host string) map[dane.NextHop]dane.Finding
}

// A Server answers on the control socket.
type Server struct {
	o        Options
	http     *httpserver.Server
	listings places
	own      uint32 // the daemon's uid

	writeTimeout time.Duration // shorter in tests
}

// NewServer returns a server that does not listen yet.
func NewServer(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Exempt == nil {
		o.Exempt = func(string) bool { return false }
	}
	if o.ExemptUntil == nil {
		o.ExemptUntil = func(string) time.Time { return time.Time{} }
	}
	if o.ExemptBy == nil {
		o.ExemptBy = func(string) []exempt.Exemption { return nil }
	}
	if o.Rehearsed == nil {
		o.Rehearsed = func(string) []Rehearsed { return nil }
	}
	s := &Server{
		o: o, listings: newPlaces(maxListings, ownListings), own: uint32(os.Geteuid()), writeTimeout: writeTimeout,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/health", s.health)
	mux.HandleFunc("GET /v1/stats", s.stats)
	if o.Metrics != nil {
		mux.Handle("GET /metrics", o.Metrics)
	}
	mux.HandleFunc("GET /v1/cache", s.list)
	mux.HandleFunc("GET /v1/cache/{domain}", s.held)
	mux.HandleFunc("POST /v1/refresh", s.writers(s.refresh))
	mux.HandleFunc("POST /v1/forget", s.writers(s.forget))
	mux.HandleFunc("POST /v1/forget-failures", s.writers(s.forgetFailures))
	mux.HandleFunc("GET /v1/exempt", s.exemptions)
	mux.HandleFunc("POST /v1/exempt", s.writers(s.setExempt))
	mux.HandleFunc("POST /v1/learn", s.writers(s.learn))
	mux.HandleFunc("GET /v1/rehearsal", s.rehearsals)
	s.http = httpserver.New(s.bounded(mux), o.Log, slog.LevelWarn) // what takes longer says so: see unhurried
	s.http.ConnContext = withPeer
	return s
}

// Serve answers on l until Shutdown, and then returns nil. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(newLimited(l, func(c net.Conn) bool { return peerOf(c).mayWrite(s.own) })); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// Shutdown stops listening, waits for what is being answered until ctx ends,
// and then closes what is left.
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

// bounded gives a request its times. One that reads has no body: nobody would
// read it, and its client would be waited for.
func (s *Server) bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.bound(w)
		if r.Method != http.MethodPost && r.ContentLength != 0 {
			hangUpAfter(w)
			refuse(w, http.StatusBadRequest, "a request with %s has no body", r.Method)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// hangUpAfter has the connection closed after the answer. Without it, net/http
// waits for the rest of the body before it answers.
func hangUpAfter(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	_ = http.NewResponseController(w).SetReadDeadline(time.Now())
}

// unhurried lets the answer to a request that has arrived as a whole take its
// time: the deadline for its arrival would end it.
func unhurried(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
}

// bound gives the client so long to take what is written next.
func (s *Server) bound(w http.ResponseWriter) {
	// A connection without deadlines would be a bug of the wiring, and ends
	// in tests; it is no reason to refuse an answer.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.writeTimeout))
}

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.o.Health())
}

func (s *Server) stats(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.o.Stats()) }

// held answers with what is held of a domain: 404 if that is nothing.
func (s *Server) held(w http.ResponseWriter, r *http.Request) {
	domain := r.PathValue("domain")
	if !isDomain(domain) {
		refuse(w, http.StatusBadRequest, "%q is not a domain in lower case and A-labels", domain)
		return
	}
	h, err := s.Held(domain)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "%v", err)
		return
	}
	status := http.StatusOK
	if h.Nothing() {
		status = http.StatusNotFound
	}
	answer(w, status, h)
}

// Held returns all that is held of a domain, which is in canonical form. It
// looks nothing up and changes nothing. A policy that is damaged is no error.
func (s *Server) Held(domain string) (Held, error) {
	h := Held{Domain: domain, Exempt: s.o.Exempt(domain)}
	rec, err := s.o.Keeper.Get(domain)
	var damaged *cache.DamagedError
	switch {
	case err == nil:
		e := EntryOf(&rec)
		h.Entry = &e
	case errors.As(err, &damaged):
		h.Damaged = err.Error()
	case !errors.Is(err, cache.ErrNotFound):
		return Held{}, fmt.Errorf("the cache cannot be read: %w", err)
	}
	if n, ok := s.o.Keeper.Negative(domain); ok {
		h.Negative = &Negative{Result: n.Result, Err: n.Err, Until: utc(n.Until)}
	}
	h.ExemptBy = ExemptEntries(s.o.ExemptBy(domain))
	h.ExemptUntil, h.Rehearsed = utc(s.o.ExemptUntil(domain)), s.o.Rehearsed(domain)
	if s.o.DANE != nil {
		for n, f := range s.o.DANE(domain) {
			h.DANE = append(h.DANE, DANE{NextHop: n.String(), State: f.State, Why: f.Why, Hosts: f.Hosts, Until: utc(f.Until), Kept: f.Kept})
		}
		slices.SortFunc(h.DANE, func(a, b DANE) int { return strings.Compare(a.NextHop, b.NextHop) })
	}
	return h, nil
}

// list answers with the whole cache. Each page is read from the store before
// any of it is written, so that a client that does not read holds up nothing.
func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	p, _ := r.Context().Value(peerKey{}).(peer)
	leave, ok := s.listings.take(p.mayWrite(s.own))
	if !ok {
		refuse(w, http.StatusServiceUnavailable, "%d listings of the cache are under way; try again when one is done", maxListings)
		return
	}
	defer leave()
	unhurried(w)
	summary := r.URL.Query().Has("summary")
	out := s.lines(w)
	after := r.URL.Query().Get("after")
	for {
		page, next, err := s.o.Keeper.List(after, pageSize)
		if err != nil {
			out.end(fmt.Errorf("the cache cannot be read: %w", err))
			return
		}
		for i := range page {
			e := EntryOf(&page[i])
			if summary {
				e.Policy = ""
			}
			if out.write(e) != nil {
				return // the client is gone, or does not read
			}
		}
		if out.flush() != nil || r.Context().Err() != nil {
			return
		}
		if next == "" {
			out.end(nil)
			return
		}
		after = next
	}
}

// writers lets root and the daemon's own user through.
func (s *Server) writers(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, _ := r.Context().Value(peerKey{}).(peer)
		switch {
		case p.err != nil:
			hangUpAfter(w)
			refuse(w, http.StatusForbidden, "the kernel does not say who asks: %v", p.err)
		case !p.mayWrite(s.own):
			hangUpAfter(w)
			refuse(w, http.StatusForbidden, "only root and the daemon's user (uid %d) may do this, not uid %d", s.own, p.uid)
		default:
			h(w, r)
		}
	}
}

func (s *Server) refresh(w http.ResponseWriter, r *http.Request) {
	s.each(w, r, refreshAtOnce, func(ctx context.Context, domain string) any {
		res, err := s.o.Keeper.Refresh(ctx, domain)
		if err != nil {
			return Refreshed{Domain: domain, Err: err.Error()}
		}
		return res
	})
}

func (s *Server) forget(w http.ResponseWriter, r *http.Request) {
	s.each(w, r, forgetAtOnce, func(ctx context.Context, domain string) any {
		held, failure, err := s.o.Keeper.Forget(ctx, domain)
		f := Forgotten{Domain: domain, Found: held, Failure: failure}
		if err != nil {
			f.Err = err.Error()
		}
		return f
	})
}

func (s *Server) forgetFailures(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, ForgottenFailures{Count: s.o.Keeper.ForgetFailures()})
}

// each does something for every domain of the request, as forEach does.
func (s *Server) each(w http.ResponseWriter, r *http.Request, atOnce int, do func(context.Context, string) any) {
	domains, err := s.domains(w, r)
	if err != nil {
		refuse(w, http.StatusBadRequest, "%v", err)
		return
	}
	forEach(s, w, r, domains, atOnce, do)
}

// forEach does something for every item of a request, so many at once, and
// writes a line for each as it is done.
func forEach[T any](s *Server, w http.ResponseWriter, r *http.Request, items []T, atOnce int, do func(context.Context, T) any) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	todo := make(chan T)
	results := make(chan any)
	var workers sync.WaitGroup
	for range min(atOnce, len(items)) {
		workers.Go(func() {
			for item := range todo {
				select {
				case results <- do(ctx, item):
				case <-ctx.Done():
				}
			}
		})
	}
	workers.Go(func() {
		defer close(todo)
		for _, item := range items {
			select {
			case todo <- item:
			case <-ctx.Done():
				return
			}
		}
	})
	defer workers.Wait()
	defer cancel() // before the wait: a client that is gone waits for nobody

	out := s.lines(w)
	if out.flush() != nil { // the client learns that it was heard before the first is done
		return
	}
	for range items {
		select {
		case res := <-results:
			if out.write(res) != nil || out.flush() != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
	out.end(nil)
}

// domains reads the body of refresh and forget.
func (s *Server) domains(w http.ResponseWriter, r *http.Request) ([]string, error) {
	var req request
	if err := readBody(w, r, maxBody, &req); err != nil {
		return nil, err
	}
	if n := len(req.Domains); n == 0 || n > MaxDomains {
		return nil, fmt.Errorf("%d domains in a request; expected 1 to %d", n, MaxDomains)
	}
	for _, d := range req.Domains {
		if !isDomain(d) {
			return nil, fmt.Errorf("%q is not a domain in lower case and A-labels", d)
		}
	}
	return req.Domains, nil
}

// isDomain says whether s could be the domain of a record.
func isDomain(s string) bool { return hostname.Valid(s) && hostname.Lower(s) == s }
