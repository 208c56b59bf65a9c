package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func only(m func(q *dns.Msg) *dns.Msg) func(q *dns.Msg) [][]byte {
	return func(q *dns.Msg) [][]byte { return [][]byte{pack(m(q))} }
}

func kind(t *testing.T, err error) Kind {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v (%T), want an *Error", err, err)
	}
	return e.Kind
}

func TestAsksWithEDNSAndTheADBitAndWithoutDO(t *testing.T) {
	f := (&fake{udp: zone(true, map[string][]string{"example.com.": {"example.com. 300 IN TXT hello"}})}).start(t, "127.0.0.1", 0)
	a, err := resolverFor(t, Config{}, f).Query(t.Context(), "Example.COM", TypeTXT)
	if err != nil {
		t.Fatal(err)
	}
	if a.Name != "example.com" || len(a.CNAMEs) != 0 || !slices.Equal(a.Texts, []string{"hello"}) || a.TTL != 300*time.Second || !a.Authenticated {
		t.Errorf("answer %+v", a)
	}
	q := f.questions()[0]
	opt := q.IsEdns0()
	if opt == nil || opt.UDPSize() != 1232 || opt.Do() || !q.AuthenticatedData || !q.RecursionDesired || q.CheckingDisabled {
		t.Errorf("question:\n%v", q)
	}
}

// RFC 5452, 9.2: whoever wants to forge an answer must guess both. Of so few
// questions two may have the same by chance, not more; and what is drawn from
// all of 16 bits neither stays in a corner nor only climbs, as a counter or a
// clock does.
func TestQuestionsHaveRandomIDsAndPorts(t *testing.T) {
	const questions, chance = 20, 2
	f := (&fake{udp: zone(false, nil)}).start(t, "127.0.0.1", 0)
	r := resolverFor(t, Config{}, f)
	for range questions {
		if _, err := r.Query(t.Context(), "example.com", TypeA); err != nil {
			t.Fatal(err)
		}
	}
	ids, ports := map[uint16]bool{}, map[uint16]bool{}
	least, most, last, back := uint16(1<<16-1), uint16(0), uint16(0), 0
	for i, q := range f.questions() {
		ids[q.Id], ports[f.from[i].Port()] = true, true
		least, most = min(least, q.Id), max(most, q.Id)
		if i > 0 && q.Id-last >= 1<<15 { // around the circle, the way back is the shorter one
			back++
		}
		last = q.Id
	}
	if len(ids) < questions-chance || len(ports) < questions-chance {
		t.Errorf("%d different ids and %d different ports in %d questions", len(ids), len(ports), questions)
	}
	if most-least < 1<<14 || back == 0 {
		t.Errorf("the ids are from %d to %d, and went back %d times", least, most, back)
	}
}

func TestRFC8461_3_1_TheRecordIsFoundThroughACNAME(t *testing.T) {
	table := map[string][]string{
		"_mta-sts.example.com.":      {"_mta-sts.example.com. 100 IN CNAME _mta-sts.Provider.example."},
		"_mta-sts.one.example.":      {"_mta-sts.one.example. 50 IN TXT \"v=STSv1; \" \"id=1\""},
		"_mta-sts.provider.example.": {"_mta-sts.provider.example. 70 IN CNAME _mta-sts.one.example."},
	}
	t.Run("the server gives one CNAME a question", func(t *testing.T) {
		f := (&fake{udp: zone(true, table)}).start(t, "127.0.0.1", 0)
		checkChain(t, resolverFor(t, Config{}, f))
	})
	t.Run("the server gives all of it, in any order", func(t *testing.T) {
		f := (&fake{udp: only(func(q *dns.Msg) *dns.Msg {
			return withAD(reply(q, 0, table["_mta-sts.one.example."][0], table["_mta-sts.example.com."][0], table["_mta-sts.provider.example."][0]))
		})}).start(t, "127.0.0.1", 0)
		checkChain(t, resolverFor(t, Config{}, f))
	})
}

func checkChain(t *testing.T, r *Resolver) {
	t.Helper()
	a, err := r.Query(t.Context(), "_mta-sts.example.com", TypeTXT)
	if err != nil {
		t.Fatal(err)
	}
	if a.Name != "_mta-sts.one.example" || !slices.Equal(a.CNAMEs, []string{"_mta-sts.example.com", "_mta-sts.provider.example"}) ||
		!slices.Equal(a.Texts, []string{"v=STSv1; id=1"}) || a.TTL != 50*time.Second || !a.Authenticated {
		t.Errorf("answer %+v", a)
	}
}

func TestAChainIsAuthenticatedOnlyIfAllOfItIs(t *testing.T) {
	for _, plain := range []string{"a.example.", "b.example.", "c.example.", ""} {
		f := (&fake{udp: only(func(q *dns.Msg) *dns.Msg {
			m := map[string]*dns.Msg{
				"a.example.": reply(q, 0, "a.example. 60 IN CNAME b.example."),
				"b.example.": reply(q, 0, "b.example. 60 IN CNAME c.example."),
				"c.example.": reply(q, 0, "c.example. 60 IN TXT x"),
			}[q.Question[0].Name]
			m.AuthenticatedData = q.Question[0].Name != plain
			return m
		})}).start(t, "127.0.0.1", 0)
		a, err := resolverFor(t, Config{}, f).Query(t.Context(), "a.example", TypeTXT)
		if err != nil {
			t.Fatal(err)
		}
		if want := plain == ""; a.Authenticated != want {
			t.Errorf("unsigned %q: authenticated %v", plain, a.Authenticated)
		}
	}
}

func TestDenials(t *testing.T) {
	const soa = "example.com. 900 IN SOA ns.example.com. h.example.com. 1 2 3 4 300"
	for _, c := range []struct {
		name    string
		rcode   int
		records []string
		ttl     time.Duration
		last    string
	}{
		{"NODATA lasts for the SOA's minimum", 0, []string{soa}, 300 * time.Second, "www.example.com"},
		{"NXDOMAIN for the SOA's TTL where that is less", 3, []string{strings.Replace(soa, "900", "30", 1)}, 30 * time.Second, "www.example.com"},
		{"without a SOA the time is unknown", 3, nil, 0, "www.example.com"},
		{"another zone's SOA says nothing", 3, []string{strings.Replace(soa, "example.com.", "example.org.", 1)}, 0, "www.example.com"},
		{"nor does another class", 3, []string{strings.Replace(soa, " IN ", " CH ", 1)}, 0, "www.example.com"},
		{"NXDOMAIN at the end of a CNAME", 3, []string{"www.example.com. 20 IN CNAME gone.example.com.", soa}, 20 * time.Second, "gone.example.com"},
		{"NODATA at the end of a CNAME", 0, []string{"www.example.com. 20 IN CNAME gone.example.com.", soa}, 20 * time.Second, "gone.example.com"},
		{"a TTL with its sign bit set is zero", 0, []string{strings.Replace(soa, "900", "2147483648", 1)}, 0, "www.example.com"},
		{"a TTL of years is a week", 0, []string{"example.com. 99999999 IN SOA ns.example.com. h.example.com. 1 2 3 4 99999999"}, maxTTL, "www.example.com"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := (&fake{udp: only(func(q *dns.Msg) *dns.Msg { return withAD(reply(q, c.rcode, c.records...)) })}).start(t, "127.0.0.1", 0)
			a, err := resolverFor(t, Config{}, f).Query(t.Context(), "www.example.com", TypeTXT)
			if err != nil {
				t.Fatal(err)
			}
			if a.Found() || a.NXDomain != (c.rcode == dns.RcodeNameError) || a.TTL != c.ttl || a.Name != c.last || !a.Authenticated {
				t.Errorf("answer %+v", a)
			}
			if n := len(f.questions()); n != 1 {
				t.Errorf("%d questions", n)
			}
		})
	}
}

func TestGoesToTheNextServerOnFailure(t *testing.T) {
	t.Parallel()
	good := zone(false, map[string][]string{"example.com.": {"example.com. 300 IN TXT good"}})
	for _, c := range []struct {
		name string
		bad  func(q *dns.Msg) [][]byte
		kind Kind // when there is no other server
	}{
		{"SERVFAIL", only(func(q *dns.Msg) *dns.Msg { return reply(q, dns.RcodeServerFailure) }), KindServFail},
		{"REFUSED", only(func(q *dns.Msg) *dns.Msg { return reply(q, dns.RcodeRefused) }), KindRefused},
		{"REFUSED, and nothing but the header", func(q *dns.Msg) [][]byte {
			return [][]byte{pack(&dns.Msg{MsgHdr: dns.MsgHdr{Id: q.Id, Response: true, Rcode: dns.RcodeRefused}})}
		}, KindRefused},
		{"a referral", only(func(q *dns.Msg) *dns.Msg {
			m := reply(q, 0)
			m.RecursionAvailable = false
			return m
		}), KindRefused},
		{"records cut off", func(q *dns.Msg) [][]byte {
			b := pack(reply(q, 0, "example.com. 300 IN TXT bad", "example.com. 300 IN TXT worse"))
			return [][]byte{b[:len(b)-20]}
		}, KindMalformed},
		{"fewer records than announced", func(q *dns.Msg) [][]byte {
			m := reply(q, 0, "example.com. 300 IN TXT bad")
			m.Extra = nil
			b := pack(m)
			b[7] = 9
			return [][]byte{b}
		}, KindMalformed},
		{"NXDOMAIN with an answer", only(func(q *dns.Msg) *dns.Msg { return reply(q, 3, "example.com. 300 IN TXT bad") }), KindMalformed},
		{"silence", nil, KindTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := Config{}
			if c.kind == KindTimeout {
				conf.Timeout = silence
			}
			bad := (&fake{udp: c.bad}).start(t, "127.0.0.1", 0)
			second := (&fake{udp: good}).start(t, "127.0.0.1", 0)
			a, err := resolverFor(t, conf, bad, second).Query(t.Context(), "example.com", TypeTXT)
			if err != nil || !slices.Equal(a.Texts, []string{"good"}) {
				t.Errorf("with a second server: %+v, %v", a, err)
			}
			_, err = resolverFor(t, conf, bad).Query(t.Context(), "example.com", TypeTXT)
			if kind(t, err) != c.kind {
				t.Errorf("alone: %v", err)
			}
		})
	}
}

func TestAServerWhereNobodyListensIsUnreachable(t *testing.T) {
	r := resolverFor(t, Config{Servers: []netip.AddrPort{nobody(t)}})
	_, err := r.Query(t.Context(), "example.com", TypeA)
	if k := kind(t, err); k != KindUnreachable {
		t.Errorf("%v", err)
	}
}

// nobody returns an address where nobody listens: its port is taken on
// another one.
func nobody(t *testing.T) netip.AddrPort {
	elsewhere := (&fake{}).start(t, "127.0.0.2", 0)
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), elsewhere.addr.Port())
}

func TestAServerWhereNobodyListensIsAskedAgainAndThenLast(t *testing.T) {
	r := resolverFor(t, Config{Servers: []netip.AddrPort{nobody(t)}})
	r.Query(t.Context(), "example.com", TypeA)
	if n := r.list.Load().servers[0].misses.Load(); n != defaultAttempts {
		t.Errorf("it was asked %d times for one question; want %d", n, defaultAttempts)
	}
	good := (&fake{udp: zone(false, nil)}).start(t, "127.0.0.1", 0)
	r = resolverFor(t, Config{Servers: []netip.AddrPort{nobody(t)}}, good)
	for range restAfter {
		if l := r.list.Load(); l.order(time.Now())[0].addr == good.addr {
			t.Error("it is asked last too soon")
		}
		if _, err := r.Query(t.Context(), "example.com", TypeA); err != nil {
			t.Fatal(err)
		}
	}
	if l := r.list.Load(); l.order(time.Now())[0].addr != good.addr {
		t.Error("it is not asked last")
	}
}

func TestAQueryEndsInTimeHoweverManyServersAreSilent(t *testing.T) {
	silent := (&fake{}).start(t, "127.0.0.1", 0)
	r := resolverFor(t, Config{Timeout: time.Minute}, silent, silent)
	if r.within != queryTime {
		t.Errorf("a query has %v", r.within)
	}
	r.within = silence
	begun := time.Now()
	_, err := r.Query(t.Context(), "example.com", TypeA)
	if took := time.Since(begun); kind(t, err) != KindTimeout || took < silence || took > time.Minute {
		t.Errorf("%v, after %v", err, took)
	}
}

func TestTheMostTellingFailureIsReported(t *testing.T) {
	t.Parallel()
	silent := (&fake{}).start(t, "127.0.0.1", 0)
	broken := (&fake{udp: only(func(q *dns.Msg) *dns.Msg {
		m := reply(q, dns.RcodeServerFailure)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeDNSBogus, ExtraText: "x\ny"})
		return m
	})}).start(t, "127.0.0.1", 0)
	for _, order := range [][]*fake{{silent, broken}, {broken, silent}} {
		_, err := resolverFor(t, Config{Timeout: silence}, order...).Query(t.Context(), "example.com", TypeMX)
		want := "DNS MX example.com: SERVFAIL (server " + broken.addr.String() + "): DNSSEC Bogus"
		if err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

func TestASilentServerIsAskedAgainAndABadOneIsNot(t *testing.T) {
	t.Parallel()
	silent := (&fake{}).start(t, "127.0.0.1", 0)
	bad := (&fake{udp: only(func(q *dns.Msg) *dns.Msg { return reply(q, dns.RcodeServerFailure) })}).start(t, "127.0.0.1", 0)
	resolverFor(t, Config{Timeout: silence}, silent, bad).Query(t.Context(), "example.com", TypeA)
	if s, b := len(silent.questions()), len(bad.questions()); s != defaultAttempts || b != 1 {
		t.Errorf("the silent one was asked %d times, the bad one %d times", s, b)
	}
}

func TestAServerThatStaysSilentIsAskedLast(t *testing.T) {
	t.Parallel()
	silent := (&fake{}).start(t, "127.0.0.1", 0)
	good := (&fake{udp: zone(false, nil)}).start(t, "127.0.0.1", 0)
	r := resolverFor(t, Config{Timeout: silence}, silent, good)
	for range 10 {
		if _, err := r.Query(t.Context(), "example.com", TypeA); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(silent.questions()); n != restAfter {
		t.Errorf("the silent server was asked %d times, want %d", n, restAfter)
	}
	l := r.list.Load()
	if l.order(time.Now())[0].addr != good.addr || l.order(time.Now().Add(restTime))[0].addr != silent.addr {
		t.Error("the silent server does not come back to its place after its rest")
	}
	l.servers[0].heard()
	if l.order(time.Now())[0].addr != silent.addr {
		t.Error("a server that was heard again still rests")
	}
}

func TestAsksWithoutEDNSWhereThatIsUnknown(t *testing.T) {
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented} {
		for _, knows := range []bool{false, true} {
			f := (&fake{udp: only(func(q *dns.Msg) *dns.Msg {
				if q.IsEdns0() == nil {
					return reply(q, 0, "example.com. 300 IN TXT plain")
				}
				m := reply(q, rcode)
				if !knows {
					m.Extra = nil
				}
				return m
			})}).start(t, "127.0.0.1", 0)
			a, err := resolverFor(t, Config{}, f).Query(t.Context(), "example.com", TypeTXT)
			// A server that answers with EDNS means something else by it.
			if knows && kind(t, err) != KindRefused || !knows && (err != nil || !slices.Equal(a.Texts, []string{"plain"})) {
				t.Errorf("%s, EDNS in the answer %v: %+v, %v", dns.RcodeToString[rcode], knows, a, err)
			}
		}
	}
}

// A firewall that drops queries with EDNS must not cost the domain its policy,
// and a lost datagram must not cost the AD bit of later answers.
func TestASecondTryGoesWithoutEDNSAndTheNextQueryWithIt(t *testing.T) {
	t.Parallel()
	f := (&fake{udp: func(q *dns.Msg) [][]byte {
		if q.IsEdns0() != nil {
			return nil
		}
		return [][]byte{pack(withAD(reply(q, 0, "example.com. 300 IN TXT plain")))}
	}}).start(t, "127.0.0.1", 0)
	r := resolverFor(t, Config{Timeout: silence}, f)
	for range 2 {
		a, err := r.Query(t.Context(), "example.com", TypeTXT)
		if err != nil || !slices.Equal(a.Texts, []string{"plain"}) || !a.Authenticated {
			t.Errorf("%+v, %v", a, err)
		}
	}
	var edns []bool
	for _, q := range f.questions() {
		edns = append(edns, q.IsEdns0() != nil)
	}
	if !slices.Equal(edns, []bool{true, false, true, false}) {
		t.Errorf("questions with EDNS: %v", edns)
	}
}

func TestTheAddressesOfAnAnswer(t *testing.T) {
	const h = "mta-sts.example.com. 60 IN "
	for _, c := range []struct {
		name    string
		records []string
		want    string
	}{
		{"in their order", []string{h + "A 192.0.2.2", h + "A 192.0.2.1", h + "AAAA 2001:db8::1"}, "[192.0.2.2 192.0.2.1 2001:db8::1]"},
		{"a mapped address is what it maps to", []string{h + "AAAA ::ffff:127.0.0.1"}, "[127.0.0.1]"},
		{"repeats are left out", []string{h + "A 192.0.2.1", h + "A 192.0.2.1", h + "AAAA ::ffff:192.0.2.1"}, "[192.0.2.1]"},
		{"other records are none", []string{h + "TXT 192.0.2.1"}, "[]"},
		{"nothing", nil, "[]"},
	} {
		a := new(Answer)
		a.setRecords(reply(new(dns.Msg), 0, c.records...).Answer)
		if got := fmt.Sprint(a.Addrs); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestAddressesAreBoundedInNumber(t *testing.T) {
	a := &Answer{}
	for i := range 3 * maxAddresses {
		a.setRecords(reply(new(dns.Msg), 0, fmt.Sprintf("example.com. 60 IN A 192.0.2.%d", i)).Answer)
	}
	if n := len(a.Addrs); n != maxAddresses {
		t.Errorf("%d addresses", n)
	}
}

func TestEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := (&fake{udp: func(*dns.Msg) [][]byte { cancel(); return nil }}).start(t, "127.0.0.1", 0)
	r := resolverFor(t, Config{Timeout: time.Minute}, f)
	_, err := r.Query(ctx, "example.com", TypeA)
	if kind(t, err) != KindCanceled || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := r.Query(ctx, "example.com", TypeA); kind(t, err) != KindCanceled {
		t.Errorf("with an ended context: %v", err)
	}
}

func TestTheNameOfAnAnswerCanBeAskedFor(t *testing.T) {
	for _, name := range []string{`b\@x`, `b\;\(\)\"\'\ x`, `b\.x`, `b\\x`, `b\000\195\188x`, `B\@X`} {
		at, end := "a.example.", name+".example."
		f := (&fake{udp: zone(true, map[string][]string{
			at:                                 {at + " 60 IN CNAME " + end},
			strings.ToLower(end):               {end + " 60 IN A 192.0.2.1"},
			"_25._tcp." + strings.ToLower(end): {"_25._tcp." + end + ` 60 IN TXT "found"`},
		})}).start(t, "127.0.0.1", 0)
		r := resolverFor(t, Config{}, f)
		a, err := r.Query(t.Context(), at, TypeA)
		if err != nil || !a.Found() || a.Name != strings.ToLower(name)+".example" {
			t.Errorf("%s: %+v, %v", name, a, err)
			continue
		}
		a, err = r.Query(t.Context(), "_25._tcp."+a.Name, TypeTXT)
		if err != nil || !slices.Equal(a.Texts, []string{"found"}) {
			t.Errorf("below %s: %+v, %v", name, a, err)
		}
	}
}

func TestNamesThatCannotBeAskedFor(t *testing.T) {
	label := strings.Repeat("a", 63)
	long := label + "." + label + "." + label + "." + label // 255 characters
	f := (&fake{udp: zone(false, nil)}).start(t, "127.0.0.1", 0)
	r := resolverFor(t, Config{}, f)
	for _, name := range []string{
		"", "a..b", ".a", label + "a.example", "a b", "ü.example", "a\x00b", "a\nb",
		"a@b", "a;b", "a(b", "a)b", `a"b`, "a'b", // would be escaped in every answer
		`a\`, `a\b.example`, `a\064b`, `a\999b`, `a\1`, // escapes that no answer has
	} {
		if _, err := r.Query(t.Context(), name, TypeA); err == nil || kind(t, err) != KindName {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{long, long[:254], "_25._tcp." + long[:245], strings.Repeat(`\001`, 63) + "." + long[:190]} {
		if a, err := r.Query(t.Context(), name, TypeA); err != nil || !a.NXDomain || !a.Authenticated {
			t.Errorf("%q: %+v, %v", name, a, err)
		}
	}
	if n := len(f.questions()); n != 0 {
		t.Errorf("%d packets sent", n)
	}
	for _, name := range []string{".", "_25._tcp.mx.example.", long[:253], "a*b.example", strings.Repeat(`\001`, 63) + "." + long[:189], `a\.`} {
		if _, err := r.Query(t.Context(), name, TypeA); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestAnAnswerSaysThatAServerAskedBeforeSaidSERVFAIL(t *testing.T) {
	says := func(rcode int, records ...string) *fake {
		return (&fake{udp: func(q *dns.Msg) [][]byte {
			b, err := reply(q, rcode, records...).Pack()
			if err != nil {
				panic(err)
			}
			return [][]byte{b}
		}}).start(t, "127.0.0.1", 0)
	}
	refuses, fails, has := says(dns.RcodeRefused), says(dns.RcodeServerFailure), says(dns.RcodeSuccess, "bogus.example. 60 IN MX 10 mx.example.")
	no := false
	for name, c := range map[string]struct {
		servers []*fake
		trust   *bool
		want    bool
	}{
		"SERVFAIL, then an answer":               {[]*fake{fails, has}, nil, true},
		"an answer at once":                      {[]*fake{has, fails}, nil, false},
		"REFUSED, then an answer":                {[]*fake{refuses, has}, nil, false},
		"of one that is not trusted to validate": {[]*fake{fails, has}, &no, false},
	} {
		var list []netip.AddrPort
		for _, s := range c.servers {
			list = append(list, s.addr)
		}
		r, err := New(Config{Servers: list, TrustAD: c.trust})
		if err != nil {
			t.Fatal(err)
		}
		a, err := r.Query(t.Context(), "bogus.example", TypeMX)
		if err != nil || !a.Found() || a.AfterServFail != c.want {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}
