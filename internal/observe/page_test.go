package observe_test

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe/observetest"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// nasty would like to be markup, another line, or to run backwards.
const nasty = "a\"'><script>alert(1)</script>\u202eb\nc\x1b[31m&amp;"

func question(domain string) string { return "/?domain=" + url.QueryEscape(domain) }

func TestHostileTextIsEscapedOnThePage(t *testing.T) {
	s := observetest.Sources()
	s.Host = nasty
	s.Stats = func() observe.Stats {
		return observe.Stats{Cache: cache.Stats{Salvage: &cache.Report{Why: errors.New(nasty), MovedTo: nasty}}}
	}
	s.Held = func(domain string) (control.Held, error) {
		return control.Held{Domain: domain, Damaged: nasty, Entry: &control.Entry{
			Domain: domain, ID: nasty, Mode: nasty, LastError: nasty, Fetched: time.Now(), Expires: time.Now().Add(time.Hour),
			Policy: "version: STSv1\nmode: enforce\nmx: mx.hostile.test\nmax_age: 604800\nx: " + nasty,
		}}, nil
	}
	o := observe.New(s)
	o.Observe(failed(keeper.StepFetch, nasty, policy.ResultFetch, nasty))
	o.Observe(failed(keeper.StepDiscovery, nasty, policy.ResultFetch, nasty))
	for _, asked := range []string{"", "hostile.test", nasty, strings.Repeat(nasty, 1000), "\xff\xfe.test"} {
		w := get(o, question(asked))
		if w.Code != 200 {
			t.Fatalf("%d for %.40q", w.Code, asked)
		}
		contains(t, w.Body.String(), `\u{202e}b\x0ac\x1b[31m&amp;amp;`, "&lt;script&gt;alert(1)&lt;/script&gt;")
		for _, never := range []string{"<script", " style=", "\u202e", "\x1b", "a\"'>", "ZgotmplZ"} {
			if strings.Contains(w.Body.String(), never) {
				t.Errorf("%.40q: there is %q", asked, never)
			}
		}
	}
	for _, path := range []string{"/", "/policies", "/style.css", "/icon.svg"} {
		h := get(o, path).Header()
		if !strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self';") ||
			h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: %v", path, h)
		}
	}
}

func TestTheBoxShowsWhatIsHeld(t *testing.T) {
	entry := func(left time.Duration) *control.Entry {
		return &control.Entry{
			Mode: "enforce", ID: "7", Fetched: time.Now().Add(-4 * time.Hour), Expires: time.Now().Add(left),
			Policy: "version: STSv1\nmode: enforce\nmx: *.one.test\nmax_age: 604800\n",
		}
	}
	s := observetest.Sources()
	s.Held = func(domain string) (control.Held, error) {
		h := control.Held{Domain: domain}
		switch domain {
		case "one.test":
			h.Entry = entry(-time.Hour) // by the clock, which is two hours ahead
		case "old.test":
			h.Entry = entry(-3 * time.Hour)
		case "exempt.test":
			h.Exempt, h.ExemptBy = true, []exempt.Exemption{{Domain: "exempt.test"}}
		case "damaged.test":
			h.Damaged = "wrong checksum"
		case "unreadable.test":
			return h, errors.New("the disk is gone")
		}
		return h, nil
	}
	o := observe.New(s)
	for asked, want := range map[string]string{
		" One.Test ":      "expires",
		"me@one.test":     "mx: *.one.test",
		"[one.test]:587":  "mode         enforce",
		"old.test":        "(1h ago)",
		"exempt.test":     "exempt       by [exempt] in the configuration: every map replies NOTFOUND",
		"damaged.test":    "wrong checksum",
		"unreadable.test": "the log says why",
		"no.test":         "Nothing is held for no.test",
		"[192.0.2.1]":     "Ask for the domain of a recipient",
		"xn--\u00fc.test": "Ask for the domain of a recipient",
	} {
		contains(t, get(o, question(asked)).Body.String(), want)
	}
}

func TestThePageCountsReplies(t *testing.T) {
	contains(t, get(observe.New(observetest.Sources()), "/").Body.String(),
		`postfix</td><td class="number" data-column="protected">5</td><td class="number" data-column="not protected">6</td>`,
		`<td class="number" data-column="exempt">0</td><td class="number" data-column="deferred">2</td>`)
}

func TestPoliciesAreListedFromTheFirstThatBeginsAsAsked(t *testing.T) {
	s := observetest.Sources()
	var names []string
	for i := range 120 {
		names = append(names, fmt.Sprintf("d%03d.test", i))
	}
	names = append(names, "e.test", "m", "m.test", "nasty.test")
	s.List = func(after string, limit int) (page []cache.Record, next string, err error) {
		for _, name := range names {
			if name > after && len(page) < limit {
				page = append(page, cache.Record{Domain: name, Mode: policy.ModeEnforce, LastError: nasty})
			}
		}
		if len(page) == limit {
			next = page[limit-1].Domain
		}
		return page, next, nil
	}
	o := observe.New(s)
	row := regexp.MustCompile(`<a href="/\?domain=[^"]*">([^<]*)</a>`)
	for path, want := range map[string]struct {
		first string
		rows  int
		more  string
	}{
		"/policies":                                {"d000.test", 50, "/policies?after=d049.test"},
		"/policies?after=d049.test":                {"d050.test", 50, "/policies?after=d099.test"},
		"/policies?from=d119.test":                 {"d119.test", 5, ""},
		"/policies?from=%20D11":                    {"d110.test", 14, ""},
		"/policies?from=m":                         {"m", 3, ""},
		"/policies?from=z":                         {"", 0, ""},
		"/policies?from=" + url.QueryEscape(nasty): {"d000.test", 50, "/policies?after=d049.test"},
	} {
		page := get(o, path).Body.String()
		rows, first := row.FindAllStringSubmatch(page, -1), ""
		if len(rows) > 0 {
			first = rows[0][1]
		}
		if first != want.first || len(rows) != want.rows || strings.Contains(page, ">More<") != (want.more != "") || !strings.Contains(page, want.more) {
			t.Errorf("%s: %d rows from %q on, want %+v", path, len(rows), first, want)
		}
		if strings.Contains(page, "<script") || strings.Contains(page, "\u202e") {
			t.Errorf("%s: hostile text is not escaped", path)
		}
	}
	s.List = func(string, int) ([]cache.Record, string, error) { return nil, "", errors.New("on purpose") }
	contains(t, get(observe.New(s), "/policies").Body.String(), "The cache cannot be read; the log says why.")
}

func failed(step keeper.Step, domain string, result policy.Result, why string) keeper.Event {
	return keeper.Event{Step: step, Domain: domain, Result: result, Err: &policy.Error{Domain: domain, Result: result, Err: errors.New(why)}}
}

// failures returns the domains in the two lists of a page, with how often.
func failures(o *observe.Observer) (held, strangers string) {
	row := regexp.MustCompile(`<td class="name"[^>]*><a [^>]*>([^<]*)</a></td><td class="nowrap"[^>]*>[^<]*</td><td class="number"[^>]*>(\d+)</td>`)
	h, s, _ := strings.Cut(get(o, "/").Body.String(), "Of discoveries")
	list := func(text string) string {
		var names []string
		for _, m := range row.FindAllStringSubmatch(text, -1) {
			names = append(names, m[1]+":"+m[2])
		}
		return strings.Join(names, " ")
	}
	return list(h), list(s)
}

func TestEachDomainsLastFailureIsListedUntilAFetchSucceeds(t *testing.T) {
	ok := func(step keeper.Step, domain string) keeper.Event {
		return keeper.Event{Step: step, Domain: domain, Result: policy.ResultOK}
	}
	var flood []keeper.Event
	for i := range 1000 {
		flood = append(flood, failed(keeper.StepDiscovery, fmt.Sprintf("s%d.test", i), policy.ResultDNS, "x"))
	}
	one := failed(keeper.StepFetch, "one.test", policy.ResultFetch, "x")
	for _, c := range []struct {
		name            string
		events          []keeper.Event
		held, strangers string
	}{
		{"the latest first", []keeper.Event{one, failed(keeper.StepFetch, "two.test", policy.ResultFetch, "y"), one}, "one.test:2 two.test:1", ""},
		{"a check does not mend the policy host", []keeper.Event{one, ok(keeper.StepCheck, "one.test")}, "one.test:1", ""},
		{"a fetch does", []keeper.Event{one, ok(keeper.StepFetch, "one.test")}, "", ""},
		{"a discovery does, in both lists", []keeper.Event{one, failed(keeper.StepDiscovery, "one.test", policy.ResultFetch, "x"), ok(keeper.StepDiscovery, "one.test")}, "", ""},
		{"no record is a failure of held policies only", []keeper.Event{
			failed(keeper.StepDiscovery, "plain.test", policy.ResultNoRecord, "none"), failed(keeper.StepCheck, "held.test", policy.ResultNoRecord, "none"),
		}, "held.test:1", ""},
		{"busy is no failure of the domain", []keeper.Event{
			failed(keeper.StepDiscovery, "new.test", policy.ResultBusy, "busy"), failed(keeper.StepFetch, "held.test", policy.ResultBusy, "busy"),
		}, "", ""},
		{"strangers do not crowd out held ones", append([]keeper.Event{one}, flood...), "one.test:1",
			"s999.test:1 s998.test:1 s997.test:1 s996.test:1 s995.test:1 s994.test:1 s993.test:1 s992.test:1 s991.test:1 s990.test:1"},
	} {
		o := observe.New(observetest.Sources())
		for _, e := range c.events {
			o.Observe(e)
		}
		if held, strangers := failures(o); held != c.held || strangers != c.strangers {
			t.Errorf("%s: held %q, strangers %q", c.name, held, strangers)
		}
	}
}
