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
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

const (
	keepFor     = 5 * time.Second // how long an overview is shown again to all requests
	maxQuestion = 1024            // bytes of a question to the box
	dueHours    = 24              // in the plot of what is due
)

// contentPolicy lets a browser take nothing but the style sheet from here, run
// nothing, and send the form nowhere else.
const contentPolicy = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

var (
	//go:embed page.html
	pageHTML string
	//go:embed style.css
	styleCSS []byte

	page = template.Must(template.New("page").Funcs(template.FuncMap{
		"show": text.Printable, "count": thousands,
	}).Parse(pageHTML))
)

// A view is what the template needs for one request.
type view struct {
	*overview
	Question string // as asked
	Answer   *answer
}

// An overview is the part of the page that is the same for all requests.
type overview struct {
	At                time.Time
	Version, Host, Up string
	Clock             string
	Troubles          []control.Trouble
	Policies          int64
	Modes             []mode
	Due               *chart
	DueError          string
	Held, Strangers   []failure
}

// A mode is how many policies are of it.
type mode struct {
	Name     string
	Count    int64
	X, Width float64 // of the bar, in percent
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

func serveStyle(w http.ResponseWriter, _ *http.Request) {
	setHeaders(w, "text/css; charset=utf-8")
	_, _ = w.Write(styleCSS) // the client may be gone
}

// servePage makes the page in memory and then writes it, so that a client that
// does not read delays nobody.
func (o *Observer) servePage(w http.ResponseWriter, r *http.Request) {
	v := view{overview: o.overview(), Question: r.URL.Query().Get("domain")}
	v.Question = v.Question[:min(len(v.Question), maxQuestion)]
	if strings.TrimSpace(v.Question) != "" {
		v.Answer = o.answer(v.Question)
	}
	var body bytes.Buffer
	if err := page.Execute(&body, v); err != nil {
		o.Log.Error("the status page could not be made", "err", err)
		http.Error(w, "the page could not be made; the log says why", http.StatusInternalServerError)
		return
	}
	setHeaders(w, "text/html; charset=utf-8")
	_, _ = w.Write(body.Bytes()) // the client may be gone
}

// overview returns the last overview, or makes a new one. One request makes it, and
// the others wait.
func (o *Observer) overview() *overview {
	o.gathering.Lock()
	defer o.gathering.Unlock()
	now := time.Now()
	if o.last == nil || now.Sub(o.last.At) >= keepFor {
		o.last = o.gather(now)
	}
	return o.last
}

func (o *Observer) gather(now time.Time) *overview {
	s := o.Stats()
	v := &overview{
		At: now, Clock: text.Clock(now), Version: o.Version, Host: o.Host, Up: text.Span(now.Sub(o.Started)),
		Troubles: o.Troubles(), Policies: s.Cache.Policies(), Modes: modes(s.Cache.ByMode[:], s.Cache.Policies()),
	}
	v.Held, v.Strangers = o.failures.latest(now)
	counts, complete, err := o.Due(s.time(now), dueHours)
	if err != nil {
		v.DueError = err.Error()
		return v
	}
	v.Due = newChart(counts, complete, now)
	return v
}

// modes are the policies by mode, those that protect most first.
func modes(byMode []int64, total int64) []mode {
	var list []mode
	x := 0.0
	for m, n := range slices.Backward(byMode) {
		if m == 0 && n == 0 {
			break // none is unreadable
		}
		width := 100 * float64(n) / float64(max(total, 1))
		list = append(list, mode{Name: modeName(policy.Mode(m)), Count: n, X: x, Width: width})
		x += width
	}
	return list
}

// An answer is what the box says.
type answer struct {
	Wrong string // why there is none
	*explain.HeldReport
}

// answer explains a next-hop, or the domain of a mail address, from what is held
// of it.
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
		return &answer{Wrong: fmt.Sprintf("Nothing is held of %s. The next lookup of a mail server finds out whether it has a policy. "+
			"This page asks nobody; sts-tlsmap -explain %[1]s does.", text.Printable(domain))}
	}
	s := o.Stats()
	return &answer{HeldReport: explain.FromHeld(&h, o.Table, s.time(time.Now()))}
}
