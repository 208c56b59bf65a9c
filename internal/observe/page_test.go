package observe

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// nasty would like to be markup, another line, or to run backwards.
const nasty = "a\"'><script>alert(1)</script>\u202eb\nc\x1b[31m&amp;"

// fake is a keeper with what is put into it.
type fake struct {
	records map[string]cache.Record
	busy    []keeper.Busy
	lists   atomic.Int64
	hold    chan struct{} // List waits for it, if there is one
}

func (f *fake) Get(domain string) (cache.Record, error) {
	if domain == "damaged.test" {
		return cache.Record{}, &cache.DamagedError{Domain: domain, Err: errors.New("wrong checksum")}
	}
	if r, ok := f.records[domain]; ok {
		return r, nil
	}
	return cache.Record{}, cache.ErrNotFound
}

func (f *fake) List(after string, _ int) ([]cache.Record, string, error) {
	f.lists.Add(1)
	if f.hold != nil {
		<-f.hold
	}
	var page []cache.Record
	for _, r := range f.records {
		if after == "" {
			page = append(page, r)
		}
	}
	return page, "", nil
}

func (f *fake) Busiest(most int) []keeper.Busy { return f.busy[:min(most, len(f.busy))] }

func newPage(t *testing.T, f *fake) *Page {
	t.Helper()
	table, err := tlsmap.NewTable(mta.Builtin())
	if err != nil {
		t.Fatal(err)
	}
	return NewPage(PageSources{
		Version: "1.0", Host: "relay", Started: noon.Add(-time.Hour), Now: func() time.Time { return noon },
		Keeper:   f,
		Cache:    func() cache.Stats { return cache.Stats{ByMode: [4]int64{0, 1234, 0, 5678}} },
		Troubles: func() []control.Trouble { return nil },
		Failures: new(Failures), Table: table,
		Held: func(domain string) (control.Held, error) {
			h := control.Held{Domain: domain, Exempt: domain == "exempt.test"}
			r, err := f.Get(domain)
			switch {
			case err == nil:
				e := control.EntryOf(&r)
				h.Entry = &e
			case err != cache.ErrNotFound:
				h.Damaged = err.Error()
			}
			return h, nil
		},
	})
}

func get(h http.Handler, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
	return w
}

func question(domain string) string { return "/?domain=" + url.QueryEscape(domain) }

// expect fails for what is not in a page, or is and must not be.
func expect(t *testing.T, page string, wants, nevers []string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(page, want) {
			t.Errorf("missing: %s", want)
		}
	}
	for _, never := range nevers {
		if strings.Contains(page, never) {
			t.Errorf("there is %q", never)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
}

func TestHostileNamesAndTextsAreShownAndDoNothing(t *testing.T) {
	text := "version: STSv1\nmode: enforce\nmx: mx.hostile.test\nmax_age: 604800\nx: " + nasty
	f := &fake{
		records: map[string]cache.Record{"hostile.test": {
			Domain: "hostile.test", ID: nasty, Mode: policy.ModeEnforce, Text: []byte(text), LastError: nasty,
			Fetched: noon.Add(-time.Hour), Expires: noon.Add(time.Hour), Due: noon.Add(time.Minute),
		}},
		busy: []keeper.Busy{{Domain: nasty, Share: .5}},
	}
	p := newPage(t, f)
	p.Host = nasty
	p.Troubles = func() []control.Trouble { return []control.Trouble{{Condition: "salvage", What: nasty, Next: nasty}} }
	p.Failures.Observe(failed(keeper.StepFetch, nasty, policy.ResultFetch, errors.New(nasty)))
	p.Failures.Observe(failed(keeper.StepDiscovery, nasty, policy.ResultFetch, errors.New(nasty)))
	for _, asked := range []string{"", "hostile.test", nasty, strings.Repeat(nasty, 1000), "\xff\xfe.test"} {
		w := get(p, question(asked))
		if w.Code != http.StatusOK {
			t.Fatalf("%d for %.40q", w.Code, asked)
		}
		expect(t, w.Body.String(),
			[]string{`\u{202e}b\x0ac\x1b[31m&amp;amp;`, "&lt;script&gt;alert(1)&lt;/script&gt;"},
			[]string{"<script", "\u202e", "\x1b", "a\"'>", "ZgotmplZ"})
	}
}

func TestThePageLetsABrowserRunNothing(t *testing.T) {
	p := newPage(t, &fake{})
	for _, path := range []string{"/", "/style.css", "/nothing"} {
		w := get(p, path)
		h := w.Header()
		if h.Get("Content-Security-Policy") != policyOfContent || h.Get("X-Content-Type-Options") != "nosniff" ||
			h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: %v", path, h)
		}
		if strings.Contains(w.Body.String(), " style=") || strings.Contains(w.Body.String(), "<script") {
			t.Errorf("%s has what its policy forbids", path)
		}
	}
	if got := get(p, "/nothing").Code; got != http.StatusNotFound {
		t.Errorf("another path: %d", got)
	}
	w := httptest.NewRecorder()
	if p.ServeHTTP(w, httptest.NewRequest("POST", "/", nil)); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
}

func TestTheBoxExplainsFromWhatIsHeld(t *testing.T) {
	text := "version: STSv1\nmode: enforce\nmx: *.one.test\nmax_age: 604800\n"
	p := newPage(t, &fake{records: map[string]cache.Record{
		"one.test": {Domain: "one.test", ID: "7", Mode: policy.ModeEnforce, Text: []byte(text), Fetched: noon.Add(-time.Hour), Expires: noon.Add(time.Hour)},
		"old.test": {Domain: "old.test", ID: "7", Mode: policy.ModeEnforce, Text: []byte(text), Fetched: noon.Add(-2 * time.Hour), Expires: noon.Add(-time.Hour)},
	}})
	for asked, want := range map[string]string{
		" One.Test ":      "OK secure match=.one.test servername=hostname",
		"me@one.test":     "mx: *.one.test",
		"[one.test]:587":  "<td>postfix-dane</td><td>not known here</td>",
		"old.test":        "No policy that is held counts now",
		"exempt.test":     "the domain is exempt",
		"damaged.test":    "wrong checksum",
		"no.test":         "Nothing is held of no.test",
		"[192.0.2.1]":     "Ask for the domain of a recipient",
		"xn--\u00fc.test": "Ask for the domain of a recipient",
	} {
		w := get(p, question(asked))
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%q: no %s in\n%s", asked, want, w.Body)
		}
	}
}

func TestThoseWhoAskAtOnceShareTheWork(t *testing.T) {
	f := &fake{hold: make(chan struct{})}
	p := newPage(t, f)
	codes := make(chan int)
	for range pagesAtOnce {
		go func() { codes <- get(p, "/").Code }()
	}
	for len(p.slots) < pagesAtOnce { // until all have begun
		select {
		case c := <-codes:
			t.Fatalf("an answer of %d, though the cache does not answer", c)
		case <-time.After(time.Millisecond):
		}
	}
	if w := get(p, "/"); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("one too many: %d", w.Code)
	}
	close(f.hold)
	for range pagesAtOnce {
		if c := <-codes; c != http.StatusOK {
			t.Errorf("got %d", c)
		}
	}
	if n := f.lists.Load(); n > 2*samplePages { // for one of them
		t.Errorf("the cache was read %d times", n)
	}
}

func TestALoopbackListenerIsAskedByAddressOnly(t *testing.T) {
	p := newPage(t, &fake{})
	for _, c := range []struct {
		local, host string
		want        int
	}{
		{"127.0.0.1", "127.0.0.1:9461", http.StatusOK},
		{"127.0.0.1", "localhost:9461", http.StatusOK},
		{"::1", "[::1]:9461", http.StatusOK},
		{"::1", "[::1]", http.StatusOK},
		{"127.0.0.1", "rebound.example:9461", http.StatusForbidden},
		{"127.0.0.1", "", http.StatusForbidden},
		{"192.0.2.1", "relay.example:9461", http.StatusOK},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = c.host
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.ParseIP(c.local)}))
		w := httptest.NewRecorder()
		if p.ServeHTTP(w, r); w.Code != c.want {
			body, _ := io.ReadAll(w.Body)
			t.Errorf("%s asked for %q: %d %s", c.local, c.host, w.Code, body)
		}
	}
}
