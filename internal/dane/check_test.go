package dane

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A hostKind sets up one MX host, and says what it is found to be.
type hostKind struct {
	name  string
	setUp func(f *fake, host string)
	want  HostState
}

const port25 = "_25._tcp."

var aliasTo = func(sec Security, end string, data ...string) func(host string) reply {
	return func(host string) reply {
		return reply{security: sec, cnames: []string{host}, end: end, data: data, ttl: 5 * time.Minute}
	}
}

var hostKinds = []hostKind{
	{"usable", func(f *fake, h string) {
		f.set(h, "A", secure("192.0.2.1")).set(port25+h, "TLSA", secure(usableTLSA...))
	}, HostUsable},
	{"usable beside one that is not", func(f *fake, h string) {
		f.set(h, "A", secure("192.0.2.1")).set(port25+h, "TLSA", secure(unusableTLSA[0], usableTLSA[0]))
	}, HostUsable},
	{"usable, reached over IPv6 only", func(f *fake, h string) {
		f.set(h, "A", secure()).set(h, "AAAA", secure("2001:db8::1")).set(port25+h, "TLSA", secure(usableTLSA...))
	}, HostUsable},
	{"usable, one family's lookup fails", func(f *fake, h string) {
		f.set(h, "A", reply{security: Bogus}).set(h, "AAAA", secure("2001:db8::1")).set(port25+h, "TLSA", secure(usableTLSA...))
	}, HostUsable},
	{"unusable", func(f *fake, h string) {
		f.set(h, "A", secure("192.0.2.1")).set(port25+h, "TLSA", secure(unusableTLSA...))
	}, HostUnusable},
	{"proven absent", func(f *fake, h string) { f.set(h, "A", secure("192.0.2.1")) }, HostNoTLSA},
	{"TLSA not authenticated", func(f *fake, h string) {
		f.set(h, "A", secure("192.0.2.1")).set(port25+h, "TLSA", insecure(usableTLSA...))
	}, HostNoTLSA},
	{"absence not authenticated", func(f *fake, h string) {
		f.set(h, "A", secure("192.0.2.1")).set(port25+h, "TLSA", insecure())
	}, HostNoTLSA},
	{"TLSA bogus", func(f *fake, h string) {
		f.set(h, "A", secure("192.0.2.1")).set(port25+h, "TLSA", reply{security: Bogus})
	}, HostFailed},
	{"TLSA times out", func(f *fake, h string) { f.set(h, "A", secure("192.0.2.1")).set(port25+h, "TLSA", reply{}) }, HostFailed},
	{"TLSA refused", func(f *fake, h string) {
		f.set(h, "A", secure("192.0.2.1")).set(port25+h, "TLSA", reply{kind: resolver.KindRefused})
	}, HostFailed},
	{"address insecure, TLSA perfect", func(f *fake, h string) {
		f.set(h, "A", insecure("192.0.2.1")).set(h, "AAAA", insecure("2001:db8::1")).set(port25+h, "TLSA", secure(usableTLSA...))
	}, HostInsecure},
	{"address insecure, TLSA and AAAA fail", func(f *fake, h string) {
		f.set(h, "A", insecure("192.0.2.1")).set(h, "AAAA", reply{}).set(port25+h, "TLSA", reply{})
	}, HostInsecure},
	{"address authenticated in the second family only", func(f *fake, h string) {
		f.set(h, "A", insecure("192.0.2.1")).set(h, "AAAA", secure("2001:db8::1")).set(port25+h, "TLSA", secure(usableTLSA...))
	}, HostUsable},
	{"address bogus", func(f *fake, h string) {
		f.set(h, "A", reply{security: Bogus}).set(h, "AAAA", reply{security: Bogus})
	}, HostFailed},
	{"address half bogus, half absent", func(f *fake, h string) { f.set(h, "A", reply{security: Bogus}).set(h, "AAAA", secure()) }, HostFailed},
	{"address times out", func(f *fake, h string) { f.set(h, "A", reply{}).set(h, "AAAA", reply{}) }, HostFailed},
	{"no address", func(f *fake, h string) { f.set(h, "A", secure()).set(h, "AAAA", insecure()) }, HostNoAddress},
	{"alias, all authenticated, TLSA at its end", func(f *fake, h string) {
		f.set(h, "A", aliasTo(Secure, "end.example", "192.0.2.1")(h)).set(port25+"end.example", "TLSA", secure(usableTLSA...))
	}, HostUsable},
	{"alias, all authenticated, TLSA at its beginning", func(f *fake, h string) {
		f.set(h, "A", aliasTo(Secure, "bare.example", "192.0.2.1")(h)).set(port25+h, "TLSA", secure(usableTLSA...))
	}, HostUsable},
	{"alias, all authenticated, unusable TLSA at its end count", func(f *fake, h string) {
		f.set(h, "A", aliasTo(Secure, "poor.example", "192.0.2.1")(h)).set(port25+"poor.example", "TLSA", secure(unusableTLSA...)).
			set(port25+h, "TLSA", secure(usableTLSA...))
	}, HostUnusable},
	{"alias, all authenticated, TLSA fails at its end", func(f *fake, h string) {
		f.set(h, "A", aliasTo(Secure, "sick.example", "192.0.2.1")(h)).set(port25+"sick.example", "TLSA", reply{security: Bogus}).
			set(port25+h, "TLSA", secure(usableTLSA...))
	}, HostFailed},
	{"alias, all authenticated, TLSA nowhere", func(f *fake, h string) {
		f.set(h, "A", aliasTo(Secure, "bare.example", "192.0.2.1")(h))
	}, HostNoTLSA},
	{"authenticated alias into an unsigned zone, TLSA at its beginning", func(f *fake, h string) {
		f.set(h, "A", aliasTo(Insecure, "plain.example", "192.0.2.1")(h)).set(h, "AAAA", reply{}).
			set(h, "CNAME", secure("plain.example.")).set(port25+h, "TLSA", secure(usableTLSA...))
	}, HostUsable},
	{"authenticated alias into an unsigned zone, TLSA at its end only", func(f *fake, h string) {
		f.set(h, "A", aliasTo(Insecure, "plain2.example", "192.0.2.1")(h)).
			set(h, "CNAME", secure("plain2.example.")).set(port25+"plain2.example", "TLSA", secure(usableTLSA...))
	}, HostNoTLSA},
	{"authenticated alias into an unsigned zone, TLSA fails", func(f *fake, h string) {
		f.set(h, "A", aliasTo(Insecure, "plain.example", "192.0.2.1")(h)).
			set(h, "CNAME", secure("plain.example.")).set(port25+h, "TLSA", reply{security: Bogus})
	}, HostFailed},
	{"alias that is not authenticated itself", func(f *fake, h string) {
		f.set(h, "A", aliasTo(Insecure, "plain.example", "192.0.2.1")(h)).
			set(h, "CNAME", insecure("plain.example.")).set(port25+h, "TLSA", secure(usableTLSA...))
	}, HostInsecure},
	{"alias whose own lookup fails", func(f *fake, h string) {
		f.set(h, "A", aliasTo(Insecure, "plain.example", "192.0.2.1")(h)).set(h, "CNAME", reply{security: Bogus})
	}, HostFailed},
}

// expected is the decision's table for a domain with an authenticated MX
// RRset, written down once more.
func expected(hosts ...HostState) State {
	has := func(states ...HostState) bool {
		return slices.ContainsFunc(states, func(s HostState) bool { return slices.Contains(hosts, s) })
	}
	switch {
	case has(HostUsable):
		return Usable
	case has(HostFailed) && has(HostNoTLSA, HostUnusable, HostInsecure):
		return SomeFailed // or AddressesFailed
	case has(HostFailed):
		return LookupFailed
	}
	return Absent
}

func TestRFC7672_2_2_2_EachKindOfHostAloneAndInPairs(t *testing.T) {
	for _, a := range hostKinds {
		t.Run(a.name, func(t *testing.T) {
			f := newFake().set("example.com", "MX", secure("10 a.example.com."))
			a.setUp(f, "a.example.com")
			r := checker(f).Look(t.Context(), NextHop{Host: "example.com"}, everyHost)
			if r.Hosts[0].State != a.want || r.Finding.State != expected(a.want) {
				t.Errorf("host: %v; next-hop: %v, %s", r.Hosts[0].State, r.Finding.State, r.Finding.Why)
			}
			for _, b := range hostKinds {
				b.setUp(f, "b.example.com")
				f.set("example.com", "MX", secure("10 a.example.com.", "20 b.example.com."))
				got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost)
				want := expected(a.want, b.want)
				failing := a
				if b.want == HostFailed {
					failing = b
				}
				if want == SomeFailed && strings.HasPrefix(failing.name, "address ") {
					want = AddressesFailed
				}
				if got.State != want || got.Why == "" {
					t.Errorf("beside %s: %v, want %v; %s", b.name, got.State, want, got.Why)
				}
				f.change(func(f *fake) {
					for key := range f.answers {
						if strings.Contains(key, "b.example.com") {
							delete(f.answers, key)
						}
					}
				})
			}
		})
	}
}

func TestRFC7672_2_1_1_TheFourKindsOfMXAnswersWithEachKindOfHost(t *testing.T) {
	for _, h := range hostKinds {
		for _, c := range []struct {
			name string
			mx   reply
			want State
			why  string
		}{
			{"secure", secure("10 mx.example.com."), expected(h.want), ""},
			{"insecure", insecure("10 mx.example.com."), UnsignedMX, "not authenticated"},
			{"bogus", reply{security: Bogus}, Undecided, "SERVFAIL"},
			{"indeterminate", reply{}, Undecided, "no answer in time"},
			{"secure null MX", secure("0 ."), NoMail, "null MX"},
			{"insecure null MX", insecure("0 ."), NoMail, "null MX"},
			{"secure NXDOMAIN", reply{security: Secure, nx: true}, NoMail, "does not exist"},
			{"insecure NXDOMAIN", reply{security: Insecure, nx: true}, NoMail, "does not exist"},
		} {
			f := newFake().set("example.com", "MX", c.mx)
			h.setUp(f, "mx.example.com")
			got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost)
			if got.State != c.want || !strings.Contains(got.Why, c.why) {
				t.Errorf("MX %s, host %s: %v, want %v; %s", c.name, h.name, got.State, c.want, got.Why)
			}
			if c.want != expected(h.want) && f.questions() != 1 {
				t.Errorf("MX %s, host %s: %d questions", c.name, h.name, f.questions())
			}
		}
	}
}

// TestRFC7672_2_1_1_AnUnauthenticatedAnswerDoesNotHideASERVFAIL has one
// of two servers validate, and the other have what the first one refused.
func TestRFC7672_2_1_1_AnUnauthenticatedAnswerDoesNotHideASERVFAIL(t *testing.T) {
	other := func(e reply) reply { e.servFail = true; return e }
	for name, c := range map[string]struct {
		mx, tlsa reply
		want     State
	}{
		"MX refused, then not authenticated":   {other(insecure("10 mx.example.com.")), secure(), Undecided},
		"MX refused, then authenticated":       {other(secure("10 mx.example.com.")), secure(usableTLSA...), Usable},
		"TLSA refused, then not authenticated": {secure("10 mx.example.com."), other(insecure()), LookupFailed},
	} {
		f := newFake().set("example.com", "MX", c.mx).set("mx.example.com", "A", secure("192.0.2.1")).set(port25+"mx.example.com", "TLSA", c.tlsa)
		ch := checker(f)
		if got := ch.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != c.want {
			t.Errorf("%s: %+v", name, got)
		}
		// Map exim goes by the policy, whoever named the hosts.
		if set, err := ch.MX(t.Context(), "example.com"); err != nil || len(set.Hosts) != 1 {
			t.Errorf("%s: %v, %v", name, set, err)
		}
	}
}

func TestRFC7672_2_2_2_WithoutMXRecordsADomainIsItsOwnHost(t *testing.T) {
	for _, h := range hostKinds {
		f := newFake().set("example.com", "MX", secure())
		h.setUp(f, "example.com")
		if got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != expected(h.want) {
			t.Errorf("%s: %v; %s", h.name, got.State, got.Why)
		}
		f.set("example.com", "MX", insecure())
		if got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != UnsignedMX {
			t.Errorf("%s, denial of MX not authenticated: %v; %s", h.name, got.State, got.Why)
		}
	}
}

func TestRFC7672_2_2_2_ABracketedNextHopIsTheHost(t *testing.T) {
	for _, h := range hostKinds {
		f := newFake().set("relay.example.com", "MX", secure("10 other.example.com."))
		h.setUp(f, "relay.example.com")
		got := checker(f).Check(t.Context(), NextHop{Host: "relay.example.com", Bracketed: true}, everyHost)
		if got.State != expected(h.want) || f.count("relay.example.com", "MX") != 0 {
			t.Errorf("%s: %v; %s", h.name, got.State, got.Why)
		}
	}
}

func TestRFC7672_2_2_3_TLSAIsAskedForAtTheKeysPort(t *testing.T) {
	f := newFake().set("relay.example.com", "A", secure("192.0.2.1")).set("_587._tcp.relay.example.com", "TLSA", secure(usableTLSA...)).
		set("example.com", "MX", secure("10 relay.example.com."))
	c := checker(f)
	for n, want := range map[NextHop]State{
		{"relay.example.com", 587, true}: Usable,
		{"relay.example.com", 25, true}:  Absent,
		{"relay.example.com", 0, true}:   Absent,
		{"example.com", 587, false}:      Usable,
		{"example.com", 25, false}:       Absent,
	} {
		if got := c.Check(t.Context(), n, everyHost); got.State != want {
			t.Errorf("%+v: %v, want %v; %s", n, got.State, want, got.Why)
		}
	}
	if n := f.count("_25._tcp.relay.example.com", "TLSA"); n != 2 {
		t.Errorf("port 0 and port 25 are not the same: %d questions", n)
	}
}

func TestRFC7672_2_2_2_NoTLSALookupWhereAddressesAreNotAuthenticated(t *testing.T) {
	f := newFake().set("example.com", "MX", secure("10 mx.example.net.")).set("mx.example.net", "A", insecure("192.0.2.1"))
	checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost)
	if f.count(port25+"mx.example.net", "TLSA") != 0 {
		t.Error("TLSA was asked for")
	}
}

// TestOnlyListedHostsCount has one listed host beside one that the policy does
// not list.
func TestOnlyListedHostsCount(t *testing.T) {
	listed := func(host string) bool { return host == "a.example.com" }
	for _, a := range hostKinds {
		for _, b := range hostKinds {
			f := newFake().set("example.com", "MX", secure("20 a.example.com.", "10 b.example.com."))
			a.setUp(f, "a.example.com")
			b.setUp(f, "b.example.com")
			got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, listed)
			if got.State != expected(a.want) || f.count("b.example.com", "A") != 0 {
				t.Errorf("%s beside an unlisted host with %s: %v, %s", a.name, b.name, got.State, got.Why)
			}
		}
	}
	f := newFake().set("example.com", "MX", secure("10 b.example.com."))
	if got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, listed); got.State != NoMail || f.questions() != 1 {
		t.Errorf("no listed host: %+v", got)
	}
	if got := checker(f).Check(t.Context(), NextHop{Host: "b.example.com", Bracketed: true}, listed); got.State != NoMail {
		t.Errorf("in brackets: %+v", got)
	}
}

func TestWhereLookupsFailAtSomeHostsTheOthersAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		address, tlsa reply // of the first host
		want          State
	}{
		"TLSA":      {secure("192.0.2.1"), reply{security: Bogus}, SomeFailed},
		"addresses": {reply{security: Bogus}, reply{}, AddressesFailed},
	} {
		f := newFake().set("example.com", "MX", secure("10 a.example.com.", "20 b.example.com.", "30 c.example.com.", "40 gone.example.com.")).
			set("a.example.com", "A", c.address).set("a.example.com", "AAAA", reply{security: Bogus}).set(port25+"a.example.com", "TLSA", c.tlsa).
			set("b.example.com", "A", insecure("192.0.2.2")).set("c.example.com", "A", secure("192.0.2.3"))
		got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost)
		if got.State != c.want || !slices.Equal(got.Hosts, []string{"b.example.com", "c.example.com"}) {
			t.Errorf("%s: %+v", name, got)
		}
		f.set(port25+"c.example.com", "TLSA", secure(usableTLSA...))
		if got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != Usable || got.Hosts != nil {
			t.Errorf("%s, and one with usable records: %+v", name, got)
		}
	}
}

// TestAnotherPolicyAsksForItsOwnHostsOnly has the policy of a domain change
// while a finding is held.
func TestAnotherPolicyAsksForItsOwnHostsOnly(t *testing.T) {
	f := newFake().set("example.com", "MX", secure("10 a.example.com.", "20 b.example.com.")).
		set("a.example.com", "A", secure("192.0.2.1")).set("b.example.com", "A", secure("192.0.2.2")).
		set(port25+"b.example.com", "TLSA", secure(usableTLSA...))
	c := checker(f)
	onlyA := func(host string) bool { return host == "a.example.com" }
	for range 3 {
		if got := c.Check(t.Context(), NextHop{Host: "example.com"}, onlyA); got.State != Absent {
			t.Errorf("%+v", got)
		}
		if got := c.Check(t.Context(), NextHop{Host: "example.com"}, everyHost); got.State != Usable {
			t.Errorf("%+v", got)
		}
	}
	if a, b := f.count("a.example.com", "A"), f.count("b.example.com", "A"); a != 1 || b > 3 {
		t.Errorf("%d and %d questions for the addresses", a, b)
	}
}

func TestAReportSaysWhatWasSeen(t *testing.T) {
	f := newFake().set("example.com", "MX", secure("20 b.example.com.", "10 a.example.com.", "30 192.0.2.7.", "30 .")).
		set("a.example.com", "A", secure("192.0.2.1")).set("a.example.com", "AAAA", secure("2001:db8::1")).
		set(port25+"a.example.com", "TLSA", secure(usableTLSA...)).
		set("b.example.com", "A", secure("192.0.2.2"))
	r := checker(f).Look(t.Context(), NextHop{Host: "example.com"}, everyHost)
	if r.Finding.State != Usable || r.Finding.Why != "1 of 2 hosts have usable TLSA records" || r.MX.Security != Secure {
		t.Errorf("report %+v", r)
	}
	a, b := r.Hosts[0], r.Hosts[1]
	if a.Name != "a.example.com" || len(a.Lookups) != 2 || a.State != HostUsable {
		t.Errorf("host %+v", a)
	}
	if b.State != HostNoTLSA {
		t.Errorf("host %+v", b)
	}
}

func TestFiveHundredMXHostsCostABoundedNumberOfQuestions(t *testing.T) {
	for _, c := range []struct {
		name   string
		usable int // the host with usable records, -1: none
		want   State
	}{
		{"none with TLSA records", -1, Undecided},
		{"one with TLSA records within the bound", maxHosts - 1, Usable},
		{"one with TLSA records beyond the bound", maxHosts, Undecided},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				var mx []string
				for i := range 500 {
					host := fmt.Sprintf("mx%03d.example.com", i)
					mx = append(mx, fmt.Sprintf("10 %s.", host))
					f.set(host, "A", reply{security: Secure, cnames: []string{host}, end: "x" + host, data: []string{"192.0.2.1"}, delay: 10 * time.Millisecond})
					if i == c.usable {
						f.set(port25+host, "TLSA", secure(usableTLSA...))
					}
				}
				f.set("example.com", "MX", secure(mx...))
				got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost)
				synctest.Wait()
				if got.State != c.want {
					t.Errorf("%v, want %v; %s", got.State, c.want, got.Why)
				}
				if n := f.questions(); n > 1+5*maxHosts {
					t.Errorf("%d questions", n)
				}
				if f.most > hostsAtOnce+2 { // and the two of the probe
					t.Errorf("%d questions at once", f.most)
				}
			})
		})
	}
}

func TestAHostWithUsableRecordsDecidesWithoutWaitingForSlowOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake().set("example.com", "MX", secure("10 slow.example.com.", "20 good.example.com.")).
			set("slow.example.com", "A", reply{delay: 10 * time.Second}).
			set("good.example.com", "A", secure("192.0.2.1")).
			set(port25+"good.example.com", "TLSA", secure(usableTLSA...))
		began := time.Now()
		got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost)
		if got.State != Usable || time.Since(began) > settleTime {
			t.Errorf("%v after %v", got.State, time.Since(began))
		}
	})
}

func TestWhatIsNotDecidedInTimeIsUndecided(t *testing.T) {
	for name, f := range map[string]*fake{
		"slow MX": newFake().set("example.com", "MX", reply{security: Secure, data: []string{"10 mx.example.com."}, delay: time.Hour}),
		"slow addresses": newFake().set("example.com", "MX", secure("10 mx.example.com.")).
			set("mx.example.com", "A", reply{security: Secure, data: []string{"192.0.2.1"}, delay: time.Hour}),
		"slow TLSA, and a host without": newFake().set("example.com", "MX", secure("10 mx.example.com.", "10 bare.example.com.")).
			set("mx.example.com", "A", secure("192.0.2.1")).set("bare.example.com", "A", secure("192.0.2.1")).
			set(port25+"mx.example.com", "TLSA", reply{security: Secure, delay: time.Hour}),
		"slow in the sum": newFake().set("example.com", "MX", reply{security: Secure, data: []string{"10 mx.example.com."}, delay: 6 * time.Second}).
			set("mx.example.com", "A", reply{security: Secure, data: []string{"192.0.2.1"}, delay: 6 * time.Second}).
			set(port25+"mx.example.com", "TLSA", reply{security: Secure, delay: 6 * time.Second}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				got := checker(f).Check(t.Context(), NextHop{Host: "example.com"}, everyHost)
				if got.State != Undecided || time.Since(began) > checkTime+time.Second {
					t.Errorf("%v after %v; %s", got.State, time.Since(began), got.Why)
				}
			})
		})
	}
}

func TestAnInvalidTLSANameCountsAsAFailedLookup(t *testing.T) {
	f := newFake().set("h.example", "A", secure("192.0.2.1")).set(port25+"h.example", "TLSA", reply{kind: resolver.KindName})
	if got := checker(f).Check(t.Context(), NextHop{Host: "h.example", Bracketed: true}, everyHost); got.State != LookupFailed {
		t.Errorf("%v; %s", got.State, got.Why)
	}
}
