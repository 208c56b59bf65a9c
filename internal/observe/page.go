package observe

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

const (
	maxQuestion = 1024 // bytes of a question to the box
	pageSize    = 50   // policies on a page of the list
)

// contentPolicy lets a browser take nothing but the style sheet and the icon from
// here, run nothing, and send the form nowhere else.
const contentPolicy = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

var (
	//go:embed page.html
	pageHTML string
	//go:embed style.css
	styleCSS []byte
	//go:embed icon.svg
	iconSVG []byte

	pages = template.Must(template.New("").Funcs(template.FuncMap{
		"show": text.Printable, "count": thousands,
	}).Parse(pageHTML))
)

// A view is what the templates need for one request.
type view struct {
	Path, Version, Host, Up, Clock string
	Question                       string // as asked
	Answer                         *answer
	List                           *list
	TLS                            *tlsView

	Troubles        []control.Trouble
	Asked           []replies
	Policies        int64
	Modes           []mode
	Held, Strangers []failure
	Reports         bool         // TLS reports are on
	Fleet           *fleet.Stats // nil: there is none
}

// replies are the numbers of one map's replies.
type replies struct {
	Map                                      string
	Protected, Unprotected, Exempt, Deferred uint64
}

// A mode is how many policies are of it.
type mode struct {
	Name  string
	Count int64
}

func setHeaders(w http.ResponseWriter, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Security-Policy", contentPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// static serves a file of the program.
func static(contentType string, content []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		setHeaders(w, contentType)
		_, _ = w.Write(content) // the client may be gone
	}
}

func (o *Observer) serveOverview(w http.ResponseWriter, r *http.Request) {
	v := view{Question: questionOf(r, "domain")}
	if strings.TrimSpace(v.Question) != "" {
		v.Answer = o.answer(v.Question)
	}
	o.servePage(w, r, "overview", v)
}

// servePage makes a page in memory and then writes it, so that a client that
// does not read delays nobody.
func (o *Observer) servePage(w http.ResponseWriter, r *http.Request, name string, v view) {
	v.Path = r.URL.Path
	o.gather(&v, time.Now())
	var body bytes.Buffer
	if err := pages.ExecuteTemplate(&body, name, v); err != nil {
		o.Log.Error("the status page could not be made", "err", err)
		http.Error(w, "the page could not be made; the log says why", http.StatusInternalServerError)
		return
	}
	setHeaders(w, "text/html; charset=utf-8")
	_, _ = w.Write(body.Bytes()) // the client may be gone
}

// questionOf returns what a form sent, cut short.
func questionOf(r *http.Request, field string) string {
	q := r.URL.Query().Get(field)
	return q[:min(len(q), maxQuestion)]
}

// gather fills in what all pages show.
func (o *Observer) gather(v *view, now time.Time) {
	s := o.Stats()
	v.Version, v.Host, v.Up, v.Clock = o.Version, o.Host, text.Span(now.Sub(o.Started)), text.Clock(now)
	v.Troubles, v.Policies = o.Troubles(), s.Cache.Policies()
	v.Reports = s.Reports.On
	if s.Fleet.On {
		v.Fleet = &s.Fleet
	}
	v.Held, v.Strangers = o.failures.latest(now)
	for m, n := range slices.Backward(s.Cache.ByMode[:]) { // those that protect most first
		if m > 0 || n > 0 { // 0 is unreadable
			v.Modes = append(v.Modes, mode{modeName(policy.Mode(m)), n})
		}
	}
	for i := range s.Maps.Maps {
		if m := &s.Maps.Maps[i]; m.Replies() > 0 {
			without := m.By["notfound"] + m.By["rehearsed-ok"] + m.By["rehearsed-temp"]
			v.Asked = append(v.Asked, replies{m.Map, m.By["ok"], without, m.By["exempt"], m.By["temp"]})
		}
	}
}

// thousands writes a number as 1,234,567.
func thousands(n any) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// An answer is what the box says.
type answer struct {
	Wrong string // why there is none
	Text  string
}

// answer tells what is held for a next-hop, or the domain of a mail address.
func (o *Observer) answer(question string) *answer {
	key := strings.TrimSpace(question)
	key = key[strings.LastIndexByte(key, '@')+1:]
	hop, kind := mta.ParseKey([]byte(key), nil)
	if kind != mta.KeyPolicyDomain {
		return &answer{Wrong: "This is " + kind.String() + ". Ask for the domain of a recipient, or the name of a smart host."}
	}
	domain := string(hop.Domain)
	h, err := o.Held(domain)
	switch {
	case err != nil:
		o.Log.Error("the status page cannot read the cache", "domain", domain, "err", err)
		return &answer{Wrong: "The cache cannot be read; the log says why."}
	case h.Nothing():
		return &answer{Wrong: fmt.Sprintf("Nothing is held for %s. The next lookup of a mail server finds out whether it has a policy.", text.Printable(domain))}
	}
	s := o.Stats()
	var b strings.Builder
	_ = explain.WriteHeld(&b, &h, s.time(time.Now())) // a Builder takes everything
	return &answer{Text: b.String()}
}

// A list is a page of the list of policies.
type list struct {
	Wrong    string // why there is none
	Policies []row
	Next     string // the domain after which the next page begins; empty: there is none
}

// A row is a policy in the list. Times are as of the page.
type row struct{ Domain, Mode, Fetched, Expires, Used, LastError string }

// servePolicies lists policies in the order of their domains: from the first one that
// begins as asked, or after a domain. One request reads the cache, and the others wait,
// since a policy may have 64 KiB.
func (o *Observer) servePolicies(w http.ResponseWriter, r *http.Request) {
	v := view{Question: questionOf(r, "from"), List: new(list)}
	after := questionOf(r, "after")
	if from := strings.ToLower(strings.TrimSpace(v.Question)); from != "" {
		// What comes last before from. No domain has the byte 0xff.
		after = from[:len(from)-1] + string([]byte{from[len(from)-1] - 1, 0xff})
	}
	s := o.Stats()
	now := s.time(time.Now())
	o.listing.Lock()
	defer o.listing.Unlock()
	records, next, err := o.List(after, pageSize)
	if err != nil {
		o.Log.Error("the status page cannot read the cache", "err", err)
		v.List.Wrong = "The cache cannot be read; the log says why."
	}
	for _, rec := range records {
		v.List.Policies = append(v.List.Policies, row{
			Domain: rec.Domain, Mode: modeName(rec.Mode), LastError: rec.LastError,
			Fetched: text.When(rec.Fetched, now), Expires: text.When(rec.Expires, now), Used: text.When(rec.Used, now),
		})
	}
	v.List.Next = next
	o.servePage(w, r, "policies", v)
}
