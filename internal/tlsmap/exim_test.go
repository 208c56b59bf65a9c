package tlsmap_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// mxSet makes a set of "preference host" in the order given.
func mxSet(hosts ...string) *dane.MXSet {
	s := &dane.MXSet{}
	for _, h := range hosts {
		var m dane.MXHost
		if _, err := fmt.Sscan(h, &m.Preference, &m.Name); err != nil {
			panic(err)
		}
		s.Hosts = append(s.Hosts, m)
	}
	return s
}

// eximLab has example.com, with that MX set and an enforced policy of these
// patterns.
func eximLab(t *testing.T, set *dane.MXSet, err error, patterns ...string) *lab {
	t.Helper()
	l := newLab(t, 0)
	l.policies.held["example.com"] = enforced(patterns...)
	l.policies.held["example.com"].entry = &keeper.Entry{}
	l.hops.mx["example.com"], l.hops.mxErr = set, err
	return l
}

const (
	reasonUnlisted = "none of its MX hosts is listed in its policy"
	reasonNoHost   = "none of its MX records names a host"
	reasonNXDomain = "the DNS says that it does not exist, but its policy is enforced"
	reasonNoList   = "MTA-STS policy lists no usable MX host name"
)

func TestRFC8461_4_1_EximIsToldTheListedHostsInOrder(t *testing.T) {
	servfail := &resolver.Error{Name: "evil\r\nwords", Kind: resolver.KindServFail, Err: errors.New("more\r\nevil words")}
	tests := []struct {
		name     string
		set      *dane.MXSet
		err      error
		patterns []string
		want     string
	}{
		{"one host", mxSet("10 mx.example.com"), nil, []string{"mx.example.com"}, "OK mx.example.com"},
		{"in order of preference", mxSet("5 b.example.com", "10 a.example.com"), nil, []string{"*.example.com"}, "OK b.example.com:a.example.com"},
		{"unlisted ones are left out", mxSet("5 evil.example", "10 mx.example.com", "20 worse.example"), nil, []string{"mx.example.com"}, "OK mx.example.com"},
		{"a pattern in capitals", mxSet("5 mx.example.com"), nil, []string{"MX.Example.COM"}, "OK mx.example.com"},
		{"a wildcard is one label", mxSet("5 example.net", "10 a.example.net", "20 a.b.example.net"), nil, []string{"*.example.net"}, "OK a.example.net"},
		{"a name that ends like a pattern", mxSet("5 evilmx.example.com", "10 mx.example.com.evil.example"), nil, []string{"mx.example.com"}, "TEMP MTA-STS: example.com: " + reasonUnlisted},
		{"implicit MX, listed", &dane.MXSet{Hosts: []dane.MXHost{{Name: "example.com"}}}, nil, []string{"example.com"}, "OK example.com"},
		{"implicit MX, not listed", &dane.MXSet{Hosts: []dane.MXHost{{Name: "example.com"}}}, nil, []string{"mx.example.com"}, "TEMP MTA-STS: example.com: " + reasonUnlisted},
		{"none listed", mxSet("5 evil.example"), nil, []string{"mx.example.com"}, "TEMP MTA-STS: example.com: none of its MX hosts is listed in its policy"},
		{"a keyword of Postfix means nothing", mxSet("5 hostname"), nil, []string{"hostname", "mx.example.com"}, "TEMP MTA-STS: example.com: " + reasonUnlisted},
		{"only a keyword", mxSet("5 hostname"), nil, []string{"hostname"}, "TEMP MTA-STS: example.com: " + reasonNoList},
		{"no host names in the MX records", &dane.MXSet{}, nil, []string{"mx.example.com"}, "TEMP MTA-STS: example.com: " + reasonNoHost},
		{"null MX", &dane.MXSet{Null: true}, nil, []string{"mx.example.com"}, "TEMP MTA-STS: example.com: the DNS says that it takes no mail (null MX), but its policy is enforced"},
		{"NXDOMAIN", &dane.MXSet{NXDomain: true}, nil, []string{"mx.example.com"}, "TEMP MTA-STS: example.com: " + reasonNXDomain},
		{"SERVFAIL", nil, servfail, []string{"mx.example.com"}, "TEMP MTA-STS: example.com: its MX hosts could not be looked up: SERVFAIL"},
		{"time-out", nil, context.DeadlineExceeded, []string{"mx.example.com"}, "TEMP MTA-STS: example.com: its MX hosts could not be looked up: no answer"},
		{"another failure", nil, errors.New("evil\r\nwords"), []string{"mx.example.com"}, "TEMP MTA-STS: example.com: its MX hosts could not be looked up: no answer"},
		{"names that the DNS code should have dropped", mxSet("5 a/b.example.com", "5 a:b.example.com", "10 ok.example.com"), nil, []string{"*.example.com"}, "OK ok.example.com"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := eximLab(t, tt.set, tt.err, tt.patterns...)
			for range 3 {
				if got := l.ask("exim", "example.com"); got != tt.want {
					t.Errorf("%q, want %q", got, tt.want)
				}
			}
		})
	}
}

func TestSendmailGetsNoMoreOfAListThanItReads(t *testing.T) {
	long := make([]string, 5) // 259 bytes with the colons
	for i := range long {
		long[i] = fmt.Sprintf("mx%d.%s.example.com", i, strings.Repeat("x", 35))
	}
	last := strings.Replace(long[4], "xxxx", "", 1)
	fits := append(long[:4:4], last) // 255
	if n := len(strings.Join(fits, ":")); n != 255 {
		t.Fatalf("the list has %d bytes", n)
	}
	all := mxSet("10 "+long[0], "10 evil.example", "20 "+long[1], "30 "+long[2], "40 "+long[3], "50 "+long[4], "60 mx.b.com")
	secure := func(names ...string) string {
		return "OK secure match=" + strings.Join(names, ":") + " servername=hostname"
	}
	for _, tt := range []struct {
		name     string
		set      *dane.MXSet
		err      error
		patterns []string
		want     string
	}{
		{"a short list", nil, errors.New("not needed"), []string{"mx.example.com", "*.example.net"}, secure("mx.example.com", ".example.net")},
		{"the longest", nil, errors.New("not needed"), fits, secure(fits...)},
		{"a longer one", mxSet("10 "+long[1], "20 evil.example"), nil, long, secure(long[1])},
		{"hosts that fit", all, nil, append(long, "mx.b.com"), secure(append(long[:4:4], "mx.b.com")...)},
		{"none listed", mxSet("10 evil.example"), nil, long, "TEMP " + reasonUnlisted + "; see: sts-tlsmap -explain example.com"},
		{"the lookup fails", nil, context.DeadlineExceeded, long, "TEMP its MX hosts could not be looked up: no answer; see: sts-tlsmap -explain example.com"},
	} {
		l := eximLab(t, tt.set, tt.err, tt.patterns...)
		for range 2 {
			if got := l.ask("sts", "example.com"); got != tt.want {
				t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
			}
		}
	}
}

func TestWithoutAnEnforcedPolicyEximGetsNOTFOUNDWithoutAnMXLookup(t *testing.T) {
	l := newLab(t, 0)
	l.SetExempt([]string{"exempt.example"})
	for _, key := range []string{"testing.example", "none.example", "unknown.example", "exempt.example", "localhost", "[192.0.2.1]", "", "a_b.example"} {
		if got := l.ask("exim", key); got != "NOTFOUND " {
			t.Errorf("%s: %q", key, got)
		}
	}
	for key, want := range map[string]string{
		"unreadable.example": "TEMP MTA-STS: unreadable.example: stored MTA-STS policy is damaged and could not be fetched again yet",
		"broken.example":     "TEMP MTA-STS: broken.example: MTA-STS lookup broke off",
		"keyword.example":    "TEMP MTA-STS: keyword.example: " + reasonNoList,
		"b\xfccher.example":  "TEMP MTA-STS: next-hop is an internationalized name that cannot be converted to A-labels",
	} {
		if got := l.ask("exim", key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	for _, domain := range l.hops.mxAsked {
		if p := l.policies.held[domain]; p == nil || p.mode != policy.ModeEnforce {
			t.Errorf("the hosts of %s were looked up", domain)
		}
	}
	if l.hops.asked != nil {
		t.Errorf("DANE was asked for: %v", l.hops.asked)
	}
}

func TestACachedPostfixReplyIsNotUsedForExim(t *testing.T) {
	l := eximLab(t, mxSet("10 mx.example.com"), nil, "mx.example.com")
	for range 3 {
		if got := l.ask("postfix", "example.com"); !strings.HasPrefix(got, "OK secure match=") {
			t.Errorf("postfix: %q", got)
		}
		if got := l.ask("exim", "example.com"); got != "OK mx.example.com" {
			t.Errorf("exim: %q", got)
		}
	}
}

func TestABracketedNameIsTheHostForExim(t *testing.T) {
	l := eximLab(t, mxSet("10 mx.example.com"), nil, "example.com")
	if got := l.ask("exim", "[example.com]"); got != "OK example.com" || l.hops.mxAsked != nil {
		t.Errorf("%q, asked for %v", got, l.hops.mxAsked)
	}
	if got := l.ask("exim", "example.com"); got != "TEMP MTA-STS: example.com: "+reasonUnlisted {
		t.Errorf("%q", got)
	}
}

func TestOnlyEquallyPreferredHostsAreShuffled(t *testing.T) {
	set := mxSet("5 first.example.com", "10 a.example.com", "10 evil.example", "10 b.example.com", "10 c.example.com", "20 y.example.com", "20 z.example.com")
	l := eximLab(t, set, nil, "*.example.com")
	before := slices.Clone(set.Hosts)
	seen := map[string]int{}
	const requests = 3000
	for range requests {
		hosts := strings.Split(strings.TrimPrefix(l.ask("exim", "example.com"), "OK "), ":")
		if len(hosts) != 6 || hosts[0] != "first.example.com" {
			t.Fatalf("hosts %q", hosts)
		}
		equals, last := slices.Sorted(slices.Values(hosts[1:4])), slices.Sorted(slices.Values(hosts[4:]))
		if strings.Join(equals, " ") != "a.example.com b.example.com c.example.com" || strings.Join(last, " ") != "y.example.com z.example.com" {
			t.Fatalf("hosts %q", hosts)
		}
		seen[strings.Join(hosts, " ")]++
	}
	if len(seen) != 6*2 {
		t.Errorf("%d orders, want 12", len(seen))
	}
	for order, n := range seen {
		if n < requests/12/2 || n > requests/12*2 { // some ten standard deviations
			t.Errorf("%s: %d times of %d", order, n, requests)
		}
	}
	if !slices.Equal(set.Hosts, before) {
		t.Error("the set, which others hold too, was changed")
	}
}

func TestAMatchListAllowsTheHostsThatThePolicyDoes(t *testing.T) {
	p := policyOf("mx.example.com", "*.example.net", "*.a.example", "deep.mx.example.org", "MX2.example.com", "hostname")
	list := tlsmap.MatchList(p)
	for _, host := range []string{
		"mx.example.com", "mx2.example.com", "a.mx.example.com", "example.com", "x.example.net", "example.net", "y.x.example.net", ".example.net",
		"b.a.example", "a.example", "example", "deep.mx.example.org", "mx.example.org", "", ".", "mx", "mx.example.co", "mx.example.comm",
	} {
		if got, want := tlsmap.Lists(list, host), p.Lists(host); got != want {
			t.Errorf("%q: %v, the policy says %v", host, got, want)
		}
	}
	if tlsmap.Lists(list, "a_b.example.net") {
		t.Error("a name that is no host name is allowed")
	}
}

func TestALongListOfHostsFitsIntoAReply(t *testing.T) {
	set := &dane.MXSet{}
	long := strings.Repeat(strings.Repeat("x", 60)+".", 3)
	for i := range 128 {
		set.Hosts = append(set.Hosts, dane.MXHost{Name: fmt.Sprintf("mx%d.%sexample.com", i, long), Preference: uint16(i)})
	}
	l := eximLab(t, set, nil, "*."+long+"example.com")
	got := l.ask("exim", "example.com")
	if n := strings.Count(got, ":"); !strings.HasPrefix(got, "OK ") || n != 127 || len(got) > tlsmap.MaxReply {
		t.Errorf("%d bytes, %d hosts: %.100q", len(got), n+1, got)
	}
}

func TestMXLookupsForEximEndWithTheLookupTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 20*time.Second)
		l.hops.takes = time.Hour
		began := time.Now()
		if got := l.ask("exim", "enforce.example"); !strings.HasSuffix(got, "no answer") || time.Since(began) != 20*time.Second {
			t.Errorf("%q in %v", got, time.Since(began))
		}
	})
}
