package observe

import (
	"bytes"
	_ "embed"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// A Keeper holds the policies; *keeper.Keeper is one. Only what reads is here.
type Keeper interface {
	Get(domain string) (cache.Record, error)
	List(after string, limit int) (list []cache.Record, next string, err error)
	Busiest(most int) []keeper.Busy
}

// PageSources are what the page is made from.
type PageSources struct {
	Version  string
	Host     string // this machine's name
	Started  time.Time
	Keeper   Keeper
	Cache    func() cache.Stats
	Troubles func() []control.Trouble
	Failures *Failures
	Table    *tlsmap.Table
	Held     func(domain string) (control.Held, error) // all that is held of a domain
	Now      func() time.Time                          // nil: time.Now
	Log      *slog.Logger                              // nil: none
}

// policyOfContent lets a browser take nothing but the style sheet from here,
// run nothing, and send the form nowhere else.
const policyOfContent = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

var (
	//go:embed page.html
	pageHTML string
	//go:embed style.css
	styleCSS []byte

	page = template.Must(template.New("page").Funcs(template.FuncMap{
		"show": explain.Printable, "count": count, "span": explain.Span,
	}).Parse(pageHTML))
)

// A Page serves the status page at / and its style sheet at /style.css.
type Page struct {
	PageSources
	mux   *http.ServeMux
	slots chan struct{} // pages that are being made

	mu   sync.Mutex
	last *overview
}

// NewPage returns the page.
func NewPage(s PageSources) *Page {
	if s.Now == nil {
		s.Now = time.Now
	}
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	p := &Page{PageSources: s, mux: http.NewServeMux(), slots: make(chan struct{}, pagesAtOnce)}
	p.mux.HandleFunc("GET /{$}", p.serve)
	p.mux.HandleFunc("GET /style.css", style)
	return p
}

// ServeHTTP is http.Handler's.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policyOfContent)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if isRebound(r) {
		http.Error(w, "ask by address, or as localhost: another name for this machine's loopback may be a trick (DNS rebinding)", http.StatusForbidden)
		return
	}
	p.mux.ServeHTTP(w, r)
}

// isRebound says whether a listener on loopback is asked by a name that the
// DNS may have pointed at it, so that a page in the operator's browser could
// read what is here as if it came from its own site.
func isRebound(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok || !local.IP.IsLoopback() {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	_, err := netip.ParseAddr(host)
	return err != nil && !strings.EqualFold(host, "localhost")
}

func style(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	_, _ = w.Write(styleCSS) // the client may be gone
}

// serve makes the page in memory and then writes it: a client that does not
// read holds up nobody.
func (p *Page) serve(w http.ResponseWriter, r *http.Request) {
	select {
	case p.slots <- struct{}{}:
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many ask for this page at once; try again in a moment", http.StatusServiceUnavailable)
		return
	}
	var text bytes.Buffer
	err := p.render(&text, r)
	<-p.slots
	if err != nil {
		p.Log.Error("the status page could not be made", "err", err)
		http.Error(w, "the page could not be made; the log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(text.Bytes()) // the client may be gone
}

func (p *Page) render(text *bytes.Buffer, r *http.Request) error {
	v := view{overview: p.overview(), Question: r.URL.Query().Get("domain")}
	if len(v.Question) > maxQuestion {
		v.Question = v.Question[:maxQuestion]
	}
	if strings.TrimSpace(v.Question) != "" {
		v.Answer = p.answer(v.Question)
	}
	return page.Execute(text, v)
}
