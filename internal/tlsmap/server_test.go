package tlsmap_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

var _ socketmap.Handler = (*tlsmap.Server)(nil)

func TestReplies(t *testing.T) {
	const (
		enforced = "OK secure match=mx.enforce.example:.example.net servername=hostname"
		stored   = "OK secure match=mx.stored.example:.example.net servername=hostname"
		tested   = "OK secure match=mx.testing.example:.example.net servername=hostname"
		none     = "NOTFOUND "
	)
	tests := []struct{ mapName, key, want string }{
		{"postfix", "enforce.example", enforced},
		{"postfix", "[enforce.example]:587", enforced},
		{"postfix", "ENFORCE.example.", enforced},
		{"postfix", "stored.example", stored},
		{"postfix", "bücher.example", "OK secure match=mx.xn--bcher-kva.example servername=hostname"},
		{"nosni", "enforce.example", "OK secure match=mx.enforce.example:.example.net"},
		{"postfix-tlsrpt", "enforce.example", enforced + " policy_type=sts policy_domain=enforce.example" +
			" mx_host_pattern=mx.enforce.example mx_host_pattern=*.example.net { policy_string = version: STSv1 }" +
			" { policy_string = mode: enforce } { policy_string = mx: mx.enforce.example }" +
			" { policy_string = mx: *.example.net } { policy_string = max_age: 86400 }"},
		{"postfix", "testing.example", none},
		{"postfix-tlsrpt", "testing.example", none},
		{"strict", "testing.example", tested},
		{"strict", "enforce.example", enforced},
		{"strict", "none.example", none},
		{"postfix", "none.example", none},
		{"postfix", "unknown.example", none},
		{"postfix", "wrapped.example", none},
		{"postfix", "", none},
		{"postfix", "localhost", none},
		{"postfix", "unreadable.example", "TEMP stored MTA-STS policy is damaged and could not be fetched again yet; see: sts-tlsmap -explain unreadable.example"},
		{"postfix", "crowded.example", "TEMP this relay could not look for an MTA-STS policy; see: sts-tlsmap -explain crowded.example"},
		{"postfix", "broken.example", "TEMP MTA-STS lookup broke off; see: sts-tlsmap -explain broken.example"},
		{"postfix", "keyword.example", "TEMP MTA-STS policy lists no usable MX host name; see: sts-tlsmap -explain keyword.example"},
		{"postfix", "b\xfccher.example", "TEMP next-hop is an internationalized name that cannot be converted to A-labels"},
		{"rehearsal", "enforce.example", none},
		{"rehearsal", "unreadable.example", none},
		{"rehearsal", "b\xfccher.example", none},
		{"rehearsal", "testing.example", none},
	}
	for _, tt := range tests {
		t.Run(tt.mapName+" "+tt.key, func(t *testing.T) {
			l := newLab(t, 0)
			for range 3 { // the second and third time from what is kept
				if got := l.ask(tt.mapName, tt.key); got != tt.want {
					t.Fatalf("%q, want %q", got, tt.want)
				}
			}
		})
	}
	t.Run("a mode that is none of the three", func(t *testing.T) {
		l := newLab(t, 0)
		if got := l.ask("postfix", "invalid.example"); !strings.HasPrefix(got, "TEMP ") {
			t.Errorf("%q", got)
		}
	})
}

func TestTheReplyIsAppended(t *testing.T) {
	l := newLab(t, 0)
	for _, mapName := range []string{"postfix", "rehearsal", "no-such-map"} {
		for _, key := range []string{"enforce.example", "localhost", "unreadable.example", "keyword.example", "b\xfc.example"} {
			want := "before" + l.ask(mapName, key)
			if got := l.AppendReply(context.Background(), []byte("before"), []byte(mapName), []byte(key)); string(got) != want {
				t.Errorf("map %s, key %q: %q, want %q", mapName, key, got, want)
			}
		}
	}
}

func TestAnUnknownMapIsPERMAndTheKnownOnesAreListed(t *testing.T) {
	l := newLab(t, 0)
	const known = "; known are: postfix, postfix-tlsrpt, postfix-dane, postfix-dane-tlsrpt, exim, sts, nosni, strict, rehearsal, exim-rehearsal"
	for name, want := range map[string]string{
		"nosuch":                       "PERM unknown map nosuch" + known,
		"":                             "PERM unknown map " + known,
		"Postfix":                      "PERM unknown map Postfix" + known,
		"a\r\nb\x00\xff c":             "PERM unknown map a??b???c" + known,
		"postfix\x00":                  "PERM unknown map postfix?" + known,
		strings.Repeat("postfix", 999): "PERM unknown map " + strings.Repeat("postfix", 999)[:mta.MaxName] + known,
	} {
		if got := l.ask(name, "enforce.example"); got != want {
			t.Errorf("map %.80q: %q, want %q", name, got, want)
		}
	}
	if l.policies.asked != nil {
		t.Errorf("the keeper was asked for %q", l.policies.asked)
	}
}

func TestAnUnknownMapIsLoggedOnceAndRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 0)
		if last := l.Stats().LastUnknown; last != (tlsmap.UnknownMap{}) {
			t.Errorf("before the first: %+v", last)
		}
		for range 3 {
			l.ask("postfix-dan", "enforce.example")
			time.Sleep(time.Minute)
		}
		l.ask("evil\n\u202e", "enforce.example")
		if l.lines(`level=WARN msg="lookup in an unknown map: mail is deferred" map=postfix-dan next="correct the map's name in the MTA's configuration; known are: postfix,`) != 1 || l.lines("") != 2 {
			t.Errorf("log:\n%s", &l.log)
		}
		if s := l.Stats(); s.UnknownMap != 4 || s.LastUnknown != (tlsmap.UnknownMap{Name: `evil\x0a\u{202e}`, At: time.Now()}) {
			t.Errorf("%d, the last one %+v", s.UnknownMap, s.LastUnknown)
		}
	})
}

func TestAliasesAnswerInAnyCase(t *testing.T) {
	l := newLab(t, 0)
	for alias, name := range map[string]string{"QUERY": "postfix-dane", "query": "postfix-dane", "queryWITHtlsrpt": "postfix-dane-tlsrpt", "STS": "sts"} {
		if got, want := l.ask(alias, "enforce.example"), l.ask(name, "enforce.example"); got != want {
			t.Errorf("map %s: %q, want %q", alias, got, want)
		}
	}
	if n := l.Stats().Maps[5].By["ok"]; n != 2 {
		t.Errorf("%d lookups counted for map sts", n)
	}
}

// assertNotAsked checks that the key is answered NOTFOUND without a look at
// any policy.
func assertNotAsked(t *testing.T, keys ...string) {
	t.Helper()
	l := newLab(t, 0)
	l.policies.held["example"] = l.policies.held["enforce.example"]
	for _, mapName := range []string{"postfix", "postfix-tlsrpt", "strict"} {
		for _, key := range keys {
			if got := l.ask(mapName, key); got != "NOTFOUND " {
				t.Errorf("map %s, key %s: %q", mapName, key, got)
			}
		}
	}
	if l.policies.asked != nil {
		t.Errorf("policies were asked for: %q", l.policies.asked)
	}
}

func TestRFC8461_3_4_AddressLiteralsHaveNoPolicy(t *testing.T) {
	assertNotAsked(t, "[192.0.2.1]", "[192.0.2.1]:587", "[IPv6:2001:db8::1]", "[ipv6:2001:db8::1]:25", "[2001:db8::1]", "192.0.2.1", "2001:db8::1")
}

func TestRFC8461_3_4_TheParentDomainsPolicyIsNeverAskedFor(t *testing.T) {
	// Postfix's walk for a.enforce.example, whose parent has a policy.
	assertNotAsked(t, ".enforce.example", ".example")
	l := newLab(t, 0)
	if got := l.ask("postfix", "a.enforce.example"); got != "NOTFOUND " {
		t.Errorf("a domain below one with a policy: %q", got)
	}
	if want := []string{"a.enforce.example"}; !slices.Equal(l.policies.asked, want) {
		t.Errorf("asked for %q, want %q", l.policies.asked, want)
	}
}

func TestRFC8461_3_4_ASmartHostIsAskedForByItsName(t *testing.T) {
	l := newLab(t, 0)
	l.ask("postfix", "[smart.enforce.example]:587")
	if want := []string{"smart.enforce.example"}; !slices.Equal(l.policies.asked, want) {
		t.Errorf("asked for %q, want %q", l.policies.asked, want)
	}
}

func TestNamesThatCannotHaveAPolicyAreNotAskedFor(t *testing.T) {
	assertNotAsked(t, "", "localhost", "[mailhub]", "a..b", "_dmarc.example", "a b.example", "enforce.example\x00", "enforce.example\n")
}

func TestRFC8461_3_3_WithoutAPolicyTheReplyIsNOTFOUND(t *testing.T) {
	l := newLab(t, 0)
	if got := l.ask("postfix", "unknown.example"); got != "NOTFOUND " {
		t.Errorf("%q", got)
	}
}

func TestRFC8461_5_TestingIsAppliedOnlyWhereTheMapSaysSo(t *testing.T) {
	l := newLab(t, 0)
	if got := l.ask("postfix", "testing.example"); got != "NOTFOUND " {
		t.Errorf("map postfix: %q", got)
	}
	if got := l.ask("strict", "testing.example"); !strings.HasPrefix(got, "OK secure ") {
		t.Errorf("testing = enforce: %q", got)
	}
}

func TestEachMapsReplyIsCachedWithThePolicy(t *testing.T) {
	l := newLab(t, 0)
	p := l.policies.held["enforce.example"]
	want := make(map[string]string)
	for _, m := range l.table.Maps() {
		if m.Format == mta.FormatPostfix { // Exim's are made anew each time
			want[m.Name] = l.ask(m.Name, "enforce.example")
		}
	}
	p.match = nil // from now on only kept replies can answer
	for name, reply := range want {
		if got := l.ask(name, "enforce.example"); got != reply {
			t.Errorf("map %s: %q, want %q", name, got, reply)
		}
	}
	// Another entry is all the invalidation there is.
	*p = *enforced("new.example")
	p.entry = &keeper.Entry{}
	if got := l.ask("nosni", "enforce.example"); got != "OK secure match=new.example" {
		t.Errorf("after the entry was replaced: %q", got)
	}
}

func TestAPolicyTooLongForItsAttributesIsLoggedOnce(t *testing.T) {
	l := newLab(t, 0)
	mx := longPolicy(900).MX
	l.policies.held["long.example"] = enforced(mx...)
	for range 3 {
		if got := l.ask("postfix-tlsrpt", "long.example"); got != l.ask("postfix", "long.example") || !strings.HasPrefix(got, "OK secure ") {
			t.Errorf("%.100q", got)
		}
	}
	if n := l.lines(`level=WARN msg="policy is too long for its attributes: answered as the map without tlsrpt" domain=long.example`); n != 1 || l.lines("") != 1 {
		t.Errorf("log:\n%s", &l.log)
	}
}

func TestOnlyLookupsNotAnsweredFromMemoryAreTimed(t *testing.T) {
	l := newLab(t, 0)
	l.ask("postfix", "fast.example")
	l.ask("postfix", "[192.0.2.1]")
	for _, l.policies.takes = range []time.Duration{1, tlsmap.SlowBounds[1] - time.Millisecond, 2 * time.Hour} {
		l.ask("postfix", "slow.example")
	}
	m := l.Stats().Maps[0]
	if m.Slow[0] != 1 || m.Slow[1] != 1 || m.Slow[len(tlsmap.SlowBounds)] != 1 || m.SlowSum < 2*time.Hour || m.Replies() != 5 {
		t.Errorf("%+v", m)
	}
}

func TestACachedReplyIsNotOverwritten(t *testing.T) {
	l := newLab(t, 0)
	room := make([]byte, 0, 1000)
	first := string(l.AppendReply(context.Background(), room, []byte("postfix"), []byte("enforce.example")))
	l.AppendReply(context.Background(), room, []byte("postfix"), []byte("keyword.example"))
	if got := l.ask("postfix", "enforce.example"); got != first {
		t.Errorf("%q, want %q", got, first)
	}
}

func TestExemptDomainsAreNOTFOUNDAndNotAskedFor(t *testing.T) {
	l := newLab(t, 0)
	l.SetExempt([]string{"enforce.example", ".stored.example"})
	for _, key := range []string{"enforce.example", "[enforce.example]:25", "a.stored.example", "a.b.stored.example"} {
		if got := l.ask("postfix", key); got != "NOTFOUND " {
			t.Errorf("%s: %q", key, got)
		}
	}
	if l.policies.asked != nil {
		t.Errorf("asked for %q", l.policies.asked)
	}
	if got := l.ask("postfix", "stored.example"); !strings.HasPrefix(got, "OK ") {
		t.Errorf("stored.example, of which only what is below is exempt: %q", got)
	}

	l.SetExempt(nil)
	if got := l.ask("postfix", "enforce.example"); !strings.HasPrefix(got, "OK ") {
		t.Errorf("after the list was emptied: %q", got)
	}
}

func TestRepliesAreCountedByMapAndKind(t *testing.T) {
	l := newLab(t, 0)
	l.SetExempt([]string{"exempt.example"})
	for _, mapName := range []string{"postfix", "rehearsal"} {
		for key, n := range map[string]int{
			"enforce.example": 1, "localhost": 1, "none.example": 1, "exempt.example": 3,
			"unreadable.example": 2, "b\xfccher.example": 1, "keyword.example": 1,
		} {
			for range n {
				l.ask(mapName, key)
			}
		}
	}
	for i, want := range map[int]map[string]uint64{
		0: {"ok": 1, "notfound": 2, "exempt": 3, "temp": 4, "rehearsed-ok": 0, "rehearsed-temp": 0},
		1: {"ok": 0, "notfound": 0, "exempt": 0, "temp": 0, "rehearsed-ok": 0, "rehearsed-temp": 0},
		8: {"ok": 0, "notfound": 2, "exempt": 3, "temp": 0, "rehearsed-ok": 1, "rehearsed-temp": 4},
	} {
		m := l.Stats().Maps[i]
		if !maps.Equal(m.By, want) || m.Map != l.table.Maps()[i].Name {
			t.Errorf("map %s: %v, want %v", m.Map, m.By, want)
		}
	}
}

func TestLookupsMayComeFromManyGoroutines(t *testing.T) {
	l := newLab(t, 0)
	l.policies.mute = true
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 200 {
				l.SetExempt([]string{fmt.Sprintf("%d.example", i)})
				for _, m := range []string{"postfix", "postfix-tlsrpt", "nosni", "rehearsal"} {
					l.ask(m, "enforce.example")
					l.ask(m, "STORED.example")
				}
				l.Stats()
			}
		})
	}
	wg.Wait()
	want := "OK secure match=mx.stored.example:.example.net servername=hostname"
	if got := l.ask("postfix", "stored.example"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if n := l.Stats().Maps[0].By["ok"]; n != 8*200*2+1 {
		t.Errorf("%d counted", n)
	}
}

func TestAPolicyThatCouldNotBeFetchedIsToldOncePerLookupThatCounts(t *testing.T) {
	l := newLab(t, 0)
	for _, key := range []string{"unfetched.example", "Unfetched.Example", "[unfetched.example]:25", ".unfetched.example", "unknown.example", "enforce.example", "crowded.example"} {
		for _, mapName := range []string{"postfix", "rehearsal", "exim-rehearsal", tlsmap.NotMail + "postfix"} {
			l.ask(mapName, key)
		}
	}
	want := []string{"unfetched.example", "unfetched.example", "unfetched.example"}
	if !slices.Equal(l.failed, want) {
		t.Errorf("got %q, want %q", l.failed, want)
	}
	if reply := l.ask("postfix", "unfetched.example"); reply != "NOTFOUND " {
		t.Errorf("the reply is %q", reply)
	}
}

func TestRFC8461_4_1_MXHostsThatThePolicyDoesNotListAreToldOncePerLookupThatCounts(t *testing.T) {
	const domain = "example.com"
	for _, tt := range []struct {
		name    string
		mapName string
		set     *dane.MXSet
		finding dane.Finding
		want    string // a line for each of two lookups; "": nobody is told
	}{
		{"exim: the first host", "exim", mxSet("5 evil.example", "10 mx.example.com"), dane.Finding{}, "example.com evil.example"},
		{"exim: none is listed", "exim", mxSet("5 evil.example", "10 x.y.example.net"), dane.Finding{}, "example.com evil.example x.y.example.net"},
		{"exim: only a less preferred one", "exim", mxSet("5 mx.example.com", "10 backup.example"), dane.Finding{}, ""},
		{"exim: no mail host", "exim", &dane.MXSet{NXDomain: true}, dane.Finding{}, ""},
		{"exim: a rehearsal", "exim-rehearsal", mxSet("5 evil.example"), dane.Finding{}, ""},
		{"exim: -query", tlsmap.NotMail + "exim", mxSet("5 evil.example"), dane.Finding{}, ""},
		{"DANE: MTA-STS applies", "postfix-dane-tlsrpt", nil, dane.Finding{State: dane.UnsignedMX, Barred: []string{"evil.example"}}, "example.com evil.example"},
		{"DANE: the policy lists the host now", "postfix-dane", nil, dane.Finding{State: dane.Absent, Barred: []string{"mx.example.com"}}, ""},
		{"DANE: MTA-STS stands aside", "postfix-dane", nil, dane.Finding{State: dane.Usable, Barred: []string{"evil.example"}}, ""},
		{"DANE: undecided", "postfix-dane", nil, dane.Finding{Barred: []string{"evil.example"}}, ""},
		{"Postfix looks its hosts up by itself", "postfix-tlsrpt", mxSet("5 evil.example"), dane.Finding{}, ""},
	} {
		l := eximLab(t, tt.set, nil, "mx.example.com", "*.example.net")
		l.hops.findings[domain] = tt.finding
		for _, key := range []string{domain, "Example.COM", "." + domain} {
			l.ask(tt.mapName, key)
		}
		var want []string
		if tt.want != "" {
			want = []string{tt.want, tt.want}
		}
		if !slices.Equal(l.failed, want) {
			t.Errorf("%s: told %q, want %q", tt.name, l.failed, want)
		}
	}
}
