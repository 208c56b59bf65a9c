package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
)

// A Keeper holds the policies; *keeper.Keeper is one.
type Keeper interface {
	Get(domain string) (cache.Record, error)
	List(after string, limit int) (list []cache.Record, next string, err error)
	Negative(domain string) (keeper.Negative, bool)
	Refresh(ctx context.Context, domain string) (keeper.Refreshed, error)
	Forget(ctx context.Context, domain string) (held, failure bool, err error)
	ForgetFailures() int
	Learn(ctx context.Context, domain string) (keeper.Learned, error)
	Take(ctx context.Context, f keeper.Foreign) (keeper.Learned, error)
}

// Exemptions are those set at run time; *exempt.List is one.
type Exemptions interface {
	Set(domain string, long time.Duration) (until time.Time, was bool, err error)
}

// Options are what a Server answers from. Metrics may be nil.
type Options struct {
	Keeper     Keeper
	Exemptions Exemptions
	Exempt     func() []exempt.Exemption // all that are in force
	Health     func() Health
	ExemptBy   func(domain string) []exempt.Exemption          // what exempts the domain; Until zero: permanent
	Rehearsed  func(domain string) []tlsmap.Rehearsed          // of all domains, if empty
	DANE       func(host string) map[dane.NextHop]dane.Finding // what is held for next hops of that name
	Reports    func() *reporting.Service                       // of TLS sessions; nil: off
	Fleet      *fleet.Fleet                                    // nil: there is none
	Metrics    http.Handler
	Log        *slog.Logger

	// Refuse is why the daemon has not started: a NotStartedError is every answer.
	// Where it is set, the others but Log are not used.
	Refuse func() string
}

// A Server answers on the control socket.
type Server struct {
	*http.Server
	o       Options
	mux     *http.ServeMux
	own     uint32 // the daemon's uid
	clients atomic.Int32
}

// NewServer returns a server that does not listen yet.
func NewServer(o Options) *Server {
	s := &Server{o: o, mux: http.NewServeMux(), own: uint32(os.Geteuid())}
	s.handle("GET /v1/health", func(c *call) error { return c.line(o.Health()) })
	s.handle("GET /v1/cache", s.list)
	s.handle("GET /v1/cache/{domain}", func(c *call) error { return c.value(s.Held(c.PathValue("domain"))) })
	s.handle("GET /v1/exempt", func(c *call) error { return lines(c, o.Exempt()) })
	s.handle("GET /v1/rehearsal", func(c *call) error { return lines(c, o.Rehearsed("")) })
	s.handle("GET /v1/tls", func(c *call) error {
		if err := o.Reports().Views(c.arg("domain"), func(v reporting.View) error { return c.line(v) }); err != nil {
			return err
		}
		return c.line(End{End: true})
	})
	s.handle("GET /v1/tls/overview", func(c *call) error { return c.value(o.Reports().Overview(true)) })
	s.handle("GET /v1/report", func(c *call) error {
		return c.value(o.Reports().Report(tlsrpt.Day(c.arg("day")), c.arg("domain")))
	})
	s.handle("POST /v1/report", s.sendReports)
	s.handle("POST /v1/suppress", func(c *call) error {
		long, err := time.ParseDuration(c.arg("for"))
		if err != nil {
			return err
		}
		return c.value(o.Reports().Suppress(c.arg("address"), long))
	})
	s.handle("POST /v1/refresh", each(func(ctx context.Context, e *Entry) (any, error) {
		return o.Keeper.Refresh(ctx, e.Domain)
	}))
	s.handle("POST /v1/forget", each(s.forget))
	s.handle("POST /v1/forget-failures", func(c *call) error { return c.line(o.Keeper.ForgetFailures()) })
	s.handle("POST /v1/learn", each(s.learn))
	s.handle("POST /v1/exempt", s.setExempt)
	s.handle("GET /v1/fleet", s.fleet)
	s.handle("POST /v1/fleet", s.order)
	if o.Metrics != nil {
		s.mux.Handle("GET /metrics", o.Metrics)
	}
	s.Server = &http.Server{
		Handler:           s.mux,
		ReadHeaderTimeout: requestTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      writeTimeout, // an answer in lines moves it
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn),
		ConnContext:       s.admit,
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				s.clients.Add(-1)
			}
		},
	}
	return s
}

// admit notes who opened a connection, and closes it if there are too many. Some
// connections are reserved, so that readers cannot lock out root.
func (s *Server) admit(ctx context.Context, c net.Conn) context.Context {
	uid, limit := peerOf(c), int32(MaxClients)
	if s.mayChange(uid) {
		limit += reservedClients
	}
	if s.clients.Add(1) > limit {
		c.Close()
	}
	return context.WithValue(ctx, uidKey{}, uid)
}

// uidKey is the key of a connection's peer in its context.
type uidKey struct{}

func (s *Server) mayChange(uid uint32) bool { return uid == 0 || uid == s.own }

// A call is a request, with its body, and the lines of JSON that answer it.
type call struct {
	*http.Request
	body    []byte
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration // for the client to take what is sent
	buf     bytes.Buffer
	sent    bool
}

// handle serves a pattern with h. An error of h becomes the answer, or the End line
// if the answer has begun.
func (s *Server) handle(pattern string, h func(*call) error) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		c := &call{Request: r, w: w, rc: http.NewResponseController(w), timeout: s.WriteTimeout}
		err := s.receive(c)
		switch {
		case err != nil:
		case s.o.Refuse != nil:
			err = &NotStartedError{s.o.Refuse()}
		default:
			err = h(c)
		}
		c.end(err)
	})
}

// receive reads the body, and lets only root and the daemon's user POST.
func (s *Server) receive(c *call) (err error) {
	limit := int64(0)
	if c.Method == http.MethodPost {
		uid, known := c.Context().Value(uidKey{}).(uint32)
		if !known || !s.mayChange(uid) {
			return fmt.Errorf("%w: only root and the daemon's user (uid %d) may do this, not uid %d", ErrNotAllowed, s.own, uid)
		}
		limit = maxBody
		defer func() {
			s.o.Log.Info("control request", "request", c.URL.RequestURI(), "uid", uid, "domains", firstDomains(c.body))
		}()
	}
	if c.body, err = io.ReadAll(http.MaxBytesReader(c.w, c.Body, limit)); err != nil {
		return fmt.Errorf("the request cannot be read: %w", err)
	}
	return c.rc.SetReadDeadline(time.Time{}) // the request is here: the answer may take long
}

// firstDomains names the first domains of a request, for the log.
func firstDomains(body []byte) (names []string) {
	for d := json.NewDecoder(bytes.NewReader(body)); d.More() && len(names) <= shownDomains; {
		var e Entry
		if d.Decode(&e) != nil {
			break
		}
		names = append(names, e.Domain)
	}
	if len(names) > shownDomains {
		names[shownDomains] = "..."
	}
	return names
}

// arg returns an argument of the request, which stands in its URL.
func (c *call) arg(name string) string { return c.URL.Query().Get(name) }

// value answers with one value, or with an error.
func (c *call) value(v any, err error) error {
	if err != nil {
		return err
	}
	return c.line(v)
}

// line adds a value to the answer.
func (c *call) line(v any) error {
	if err := json.NewEncoder(&c.buf).Encode(v); err != nil || c.buf.Len() < flushAt {
		return err
	}
	return c.flush()
}

// flush sends the lines, within the time that the client has to take them.
func (c *call) flush() error {
	c.sent = true
	_ = c.rc.SetWriteDeadline(time.Now().Add(c.timeout)) // every connection has one
	if _, err := c.buf.WriteTo(c.w); err != nil {
		return err
	}
	return c.rc.Flush()
}

func (c *call) end(err error) {
	switch {
	case err == nil:
	case c.sent:
		_ = c.line(End{End: true, Err: err.Error()})
	default:
		status, words := http.StatusBadRequest, err.Error()
		if refused := (*NotStartedError)(nil); errors.As(err, &refused) {
			status, words = http.StatusServiceUnavailable, refused.Reason
		} else if errors.Is(err, ErrNotAllowed) {
			status = http.StatusForbidden
		}
		c.w.WriteHeader(status)
		_ = c.line(failure{Err: words})
	}
	_ = c.flush() // a client that is gone needs no answer
}

// lines answers with a line for each value, and an End.
func lines[T any](c *call, values []T) error {
	for _, v := range values {
		if err := c.line(v); err != nil {
			return err
		}
	}
	return c.line(End{End: true})
}

// list answers with the whole cache. Each page is read from the store before
// any of it is written, so that a client that does not read holds up nothing.
func (s *Server) list(c *call) error {
	for after := ""; ; {
		page, next, err := s.o.Keeper.List(after, pageSize)
		if err != nil {
			return fmt.Errorf("the cache cannot be read: %w", err)
		}
		for i := range page {
			if err := c.line(EntryOf(&page[i])); err != nil {
				return err
			}
		}
		if next == "" {
			return c.line(End{End: true})
		}
		after = next
	}
}

// Held returns all that is held for a domain in canonical form. It looks
// nothing up and changes nothing.
func (s *Server) Held(domain string) (Held, error) {
	rec, err := s.o.Keeper.Get(domain)
	h, err := NewHeld(domain, rec, err, s.o.ExemptBy(domain))
	if err != nil {
		return h, err
	}
	if n, ok := s.o.Keeper.Negative(domain); ok {
		n.Until = n.Until.UTC()
		h.Negative = &n
	}
	h.Rehearsed = s.o.Rehearsed(domain)
	for n, f := range s.o.DANE(domain) {
		h.DANE = append(h.DANE, DANE{NextHop: n.String(), State: f.State, Why: f.Why, Hosts: f.Hosts, Until: f.Until.UTC(), Kept: f.Kept})
	}
	slices.SortFunc(h.DANE, func(a, b DANE) int { return strings.Compare(a.NextHop, b.NextHop) })
	return h, nil
}

func (s *Server) forget(ctx context.Context, e *Entry) (any, error) {
	held, failed, err := s.o.Keeper.Forget(ctx, e.Domain)
	return Forgotten{Domain: e.Domain, Found: held, Failure: failed}, err
}

// learn takes over a policy of another node, or discovers a domain without one.
func (s *Server) learn(ctx context.Context, e *Entry) (any, error) {
	if e.Policy == "" {
		return s.o.Keeper.Learn(ctx, e.Domain)
	}
	return s.o.Keeper.Take(ctx, keeper.Foreign{
		Domain: e.Domain, ID: e.ID, Text: []byte(e.Policy), Fetched: e.Fetched, Expires: e.Expires,
	})
}

// each does something for every entry of a request, atOnce at a time, and
// answers with a line for each as it is done.
func each(do func(context.Context, *Entry) (any, error)) func(*call) error {
	return func(c *call) error {
		var entries []*Entry
		for body := json.NewDecoder(bytes.NewReader(c.body)); body.More(); {
			e := new(Entry)
			if err := body.Decode(e); err != nil {
				return fmt.Errorf("the request cannot be read: %w", err)
			}
			if !hostname.Valid(e.Domain) || hostname.Lower(e.Domain) != e.Domain {
				return fmt.Errorf("%q is not a domain in lower case and A-labels", e.Domain)
			}
			entries = append(entries, e)
		}
		if err := c.flush(); err != nil { // tells the client that it was heard
			return err
		}
		var writing sync.Mutex
		work, ctx := errgroup.WithContext(c.Context())
		work.SetLimit(atOnce)
		for _, e := range entries {
			work.Go(func() error {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				res, err := do(ctx, e)
				if err != nil {
					res = failure{Domain: e.Domain, Err: err.Error()}
				}
				writing.Lock()
				defer writing.Unlock()
				return errors.Join(c.line(res), c.flush())
			})
		}
		if err := work.Wait(); err != nil {
			return err
		}
		return c.line(End{End: true})
	}
}

// sendReports delivers the TLS reports of a day now.
func (s *Server) sendReports(c *call) error {
	if err := c.flush(); err != nil { // tells the client that it was heard
		return err
	}
	err := s.o.Reports().Send(c.Context(), tlsrpt.Day(c.arg("day")), c.arg("domain"), func(sent reporting.Sent) {
		_ = errors.Join(c.line(sent), c.flush()) // a client that is gone ends the request
	})
	if err != nil {
		return err
	}
	return c.line(End{End: true})
}

func (s *Server) setExempt(c *call) error {
	domain := c.arg("domain")
	long, err := time.ParseDuration(c.arg("for"))
	if err != nil {
		return err
	}
	until, was, err := s.o.Exemptions.Set(domain, long)
	x := Exemption{Until: until.UTC(), Was: was}
	switch {
	case errors.Is(err, exempt.ErrNotKept):
		x.Err = err.Error()
	case err != nil:
		return err
	}
	if long == 0 {
		x.Still = s.o.ExemptBy(domain)
	}
	return c.line(x)
}

// errNoFleet is the answer of a daemon that shares nothing.
var errNoFleet = errors.New("there is no fleet: url in [fleet] is not set, or -check says what is wrong there")

// fleet answers with the relays that share policies. Without the engine it says so.
func (s *Server) fleet(c *call) error {
	if s.o.Fleet == nil {
		return errNoFleet
	}
	f := Fleet{Stats: s.o.Fleet.Stats(), Keys: -1}
	ctx, cancel := context.WithTimeout(c.Context(), fleetTimeout)
	defer cancel()
	members, err := s.o.Fleet.Relays(ctx)
	if f.Members = members; err != nil {
		f.Err = err.Error()
	} else if n, err := s.o.Fleet.Keys(ctx); err == nil { // an ACL may hide it
		f.Keys = n
	}
	return c.line(f)
}

// order has all relays of the fleet do something.
func (s *Server) order(c *call) error {
	if s.o.Fleet == nil {
		return errNoFleet
	}
	long, err := time.ParseDuration(c.arg("for"))
	if err != nil {
		return err
	}
	uid, _ := c.Context().Value(uidKey{}).(uint32)
	who := fmt.Sprintf("uid %d", uid)
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		who = u.Username
	}
	switch domain := c.arg("domain"); c.arg("do") {
	case "exempt":
		err = s.o.Fleet.Exempt(c.Context(), domain, long, who)
	case "forget":
		err = s.o.Fleet.Forget(c.Context(), domain, who)
	case "refresh":
		err = s.o.Fleet.Refresh(c.Context(), domain, who)
	default:
		err = fmt.Errorf("order %q is not known", c.arg("do"))
	}
	return c.value(End{End: true}, err)
}
