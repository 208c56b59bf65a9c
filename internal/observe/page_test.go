package observe_test

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
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
	for _, path := range []string{"/", "/style.css"} {
		h := get(o, path).Header()
		if !strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none'; style-src 'self'; form-action 'self';") ||
			h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: %v", path, h)
		}
	}
}

func TestTheBoxExplainsFromWhatIsHeld(t *testing.T) {
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
			h.Exempt, h.ExemptBy = true, []control.ExemptEntry{{Entry: "exempt.test"}}
		case "damaged.test":
			h.Damaged = "wrong checksum"
		case "unreadable.test":
			return h, errors.New("the disk is gone")
		}
		return h, nil
	}
	o := observe.New(s)
	for asked, want := range map[string]string{
		" One.Test ":      "OK secure match=.one.test servername=hostname",
		"me@one.test":     "mx: *.one.test",
		"[one.test]:587":  "TLSA records that are not held are left out",
		"old.test":        "No policy that is held counts now",
		"exempt.test":     "exempt       by [exempt] in the configuration: every map replies NOTFOUND",
		"damaged.test":    "wrong checksum",
		"unreadable.test": "the log says why",
		"no.test":         "Nothing is held of no.test",
		"[192.0.2.1]":     "Ask for the domain of a recipient",
		"xn--\u00fc.test": "Ask for the domain of a recipient",
	} {
		contains(t, get(o, question(asked)).Body.String(), want)
	}
}

func TestRequestsWithinFiveSecondsShareOnePage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		s := observetest.Sources()
		s.Due = func(time.Time, int) ([]int, bool, error) { reads++; return nil, false, errors.New("on purpose") }
		o := observe.New(s)
		for range 10 {
			contains(t, get(o, "/").Body.String(), "The cache cannot be read: on purpose")
		}
		time.Sleep(6 * time.Second)
		if get(o, "/"); reads != 2 {
			t.Errorf("the queue was read %d times", reads)
		}
	})
}

func TestThePlotShowsWhatIsDueAndStaysWithinItsFrame(t *testing.T) {
	rect := regexp.MustCompile(`<rect class="due" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)">`)
	for _, n := range []int{0, 1, 2, 3, 7, 11, 999, 20_000, 123_456_789} {
		s := observetest.Sources()
		s.Due = func(_ time.Time, hours int) ([]int, bool, error) {
			counts := make([]int, hours)
			counts[0], counts[hours-1] = n, n/2
			return counts, n < 1000, nil
		}
		page := get(observe.New(s), "/").Body.String()
		bars := rect.FindAllStringSubmatch(page, -1)
		if len(bars) != 24 {
			t.Fatalf("%d bars", len(bars))
		}
		for _, b := range bars {
			var v [5]int
			for i := 1; i < 5; i++ {
				v[i], _ = strconv.Atoi(b[i])
			}
			if v[1] < 56 || v[1]+v[3] > 712 || v[2] < 12 || v[2]+v[4] != 170 {
				t.Errorf("%d: %v", n, b)
			}
		}
		if tall := bars[0][4] != "0"; tall != (n > 0) || strings.Contains(page, "more than were counted") != (n >= 1000) {
			t.Errorf("%d: %v", n, bars[0])
		}
	}
}

func failed(step keeper.Step, domain string, result policy.Result, why string) keeper.Event {
	return keeper.Event{Step: step, Domain: domain, Result: result, Err: &policy.Error{Domain: domain, Result: result, Err: errors.New(why)}}
}

// failures returns the domains in the two lists of a page, with how often.
func failures(o *observe.Observer) (held, strangers string) {
	row := regexp.MustCompile(`<td class="name"><a [^>]*>([^<]*)</a></td><td class="nowrap">[^<]*</td><td class="number">(\d+)</td>`)
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
