package explain_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

const digest = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

// daneDomain is honest, and protected by DANE at one of its hosts.
func daneDomain() *world {
	w := honest()
	w.signed = map[string][]string{
		". SOA":                      {"a. b. 1 1 1 1 1"},
		"a.test MX":                  {"10 mx1.a.test.", "20 mx2.a.test."},
		"mx1.a.test A":               {"192.0.2.1"},
		"mx1.a.test AAAA":            {"2001:db8::1"},
		"_25._tcp.mx1.a.test TLSA":   {"3 1 1 " + digest, "0 0 1 " + digest},
		"mx2.a.test A":               {"192.0.2.2"},
		"mx2.a.test AAAA":            {},
		"_25._tcp.mx2.a.test TLSA":   {},
		"_587._tcp.mx1.a.test TLSA":  {},
		"_2525._tcp.mx1.a.test TLSA": nil,
	}
	return w
}

func replyOf(t *testing.T, r *explain.Report, name string) explain.Reply {
	t.Helper()
	for _, m := range r.Maps {
		if m.Map == name {
			return m
		}
	}
	t.Fatalf("no map %s in %+v", name, r.Maps)
	return explain.Reply{}
}

// shows fails for each of the wants that is not in a text, as it stands or with
// its lines joined.
func shows(t *testing.T, text string, wants ...string) {
	t.Helper()
	flat := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	for _, want := range wants {
		if !strings.Contains(text, want) && !strings.Contains(flat(text), flat(want)) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func textOf(t *testing.T, r *explain.Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTheDANESectionShowsHostsAndResult(t *testing.T) {
	r := daneDomain().gather(t, "a.test")
	shows(t, textOf(t, r),
		"\nDANE of a.test (RFC 7672)\n",
		"  resolver     the resolver validates\n",
		"  10           mx1.a.test: usable TLSA records\n",
		"  20           mx2.a.test: not listed by the policy\n",
		"  so           DANE protects the domain: 1 of 1 hosts have usable TLSA records\n",
		"  for mail     maps with DANE reply dane-only: hosts without usable TLSA records are skipped",
	)
	for name, want := range map[string]string{
		"postfix": "OK secure match=mx1.a.test servername=hostname", "postfix-dane": "OK dane-only", "postfix-dane-tlsrpt": "OK dane-only", "exim": "OK mx1.a.test",
	} {
		if got := replyOf(t, r, name); got.Reply != want {
			t.Errorf("map %s: %+v, want %s", name, got, want)
		}
	}
	var b bytes.Buffer
	if err := text.WriteJSON(&b, r); err != nil {
		t.Fatal(err)
	}
	var back explain.Report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if d := back.DANE; d == nil || d.State != "usable" || d.Validates == nil || !*d.Validates || len(d.Hosts) != 2 || d.Hosts[0].State != "usable TLSA records" {
		t.Errorf("JSON: %s", &b)
	}
}

func TestTheReplyOfADANEMapFollowsFromTheSection(t *testing.T) {
	for _, test := range []struct {
		name, key   string
		change      func(*world)
		reply, want string // want is in the text
	}{
		{"the port of the key", "[mx1.a.test]:587", func(*world) {}, "OK secure", "mx1.a.test: no TLSA records"},
		{"a lookup that fails", "[mx1.a.test]:2525", func(*world) {}, "OK dane-only", "mx1.a.test: lookup failed: dig +dnssec _2525._tcp.mx1.a.test TLSA"},
		{"a service without a port", "[mx1.a.test]:what", func(*world) {}, "TEMP", "undecided: the next-hop names a service"},
		{"MX that nobody signed", "a.test", func(w *world) { delete(w.signed, "a.test MX") }, "OK secure", "DANE does not protect the domain: the MX records are not authenticated"},
		{"MX that cannot be looked up", "a.test", func(w *world) { w.signed["a.test MX"] = nil }, "TEMP", "undecided: the MX lookup failed"},
		{"addresses that nobody signed", "a.test", func(w *world) {
			for _, name := range []string{"mx1.a.test A", "mx1.a.test AAAA", "mx2.a.test A", "mx2.a.test AAAA"} {
				delete(w.signed, name)
			}
		}, "OK secure", "no addresses at 2"},
		{"null MX", "a.test", func(w *world) { w.signed["a.test MX"] = []string{"0 ."} }, "OK secure", "no mail: the domain has a null MX"},
		{"a resolver that does not validate", "a.test", func(w *world) {
			w.signed = nil
		}, "OK secure", "the MX records are not authenticated"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := daneDomain()
			w.text = strings.ReplaceAll(enforced, "mx: mx1.a.test", "mx: *.a.test")
			w.held.Entry.Policy = w.text
			test.change(w)
			r := w.gather(t, test.key)
			if got := replyOf(t, r, "postfix-dane"); !strings.HasPrefix(got.Reply, test.reply) {
				t.Errorf("%+v, want %s", got, test.reply)
			}
			shows(t, textOf(t, r), test.want)
		})
	}
}

func TestWithoutAnEnforcedPolicyTheDANESectionSaysThatItIsNotUsed(t *testing.T) {
	w := daneDomain()
	w.held.Entry.Policy = strings.ReplaceAll(enforced, "enforce", "testing")
	r := w.gather(t, "a.test")
	if got := replyOf(t, r, "postfix-dane"); got.Reply != "NOTFOUND " {
		t.Errorf("%+v", got)
	}
	shows(t, textOf(t, r), "for mail     not looked up: without an enforced policy, or a map with DANE, the MTA does DANE itself")
}

func TestWithAMapThatEnforcesTestingTheDANESectionApplies(t *testing.T) {
	w := daneDomain()
	w.maps = append(mta.Builtin(), mta.Map{Name: "strict", Format: mta.FormatPostfix, DANE: true, Enforce: true, Servername: true, Testing: true})
	w.text = strings.ReplaceAll(enforced, "enforce", "testing")
	w.held.Entry.Policy = w.text
	r := w.gather(t, "a.test")
	if got := replyOf(t, r, "strict"); got.Reply != "OK dane-only" {
		t.Errorf("%+v", got)
	}
	shows(t, textOf(t, r), "for mail     maps with DANE reply dane-only")
}

func TestTheNextStepConsidersDANE(t *testing.T) {
	heldDANE := func(state dane.State, kept bool) func(*world) {
		return func(w *world) {
			w.held.DANE = []control.DANE{{NextHop: "[a.test]:587", State: dane.NoMail, Until: now.Add(time.Hour)},
				{NextHop: "a.test", State: state, Why: "so it was", Until: now.Add(20 * time.Second), Kept: kept}}
		}
	}
	unlisted := func(w *world) {
		w.text = strings.ReplaceAll(enforced, "mx1.a.test", "other.test")
		w.held.Entry.Policy = w.text
	}
	for _, test := range []struct {
		name, key   string
		change      func(*world)
		reply, next string // of map postfix-dane
		not         string // is not in next
	}{
		{"a TLSA lookup that fails", "a.test", func(w *world) {
			w.signed["_25._tcp.mx1.a.test TLSA"], w.signed["a.test MX"] = nil, []string{"10 mx1.a.test."}
		}, "OK dane-only", "mail waits until it succeeds (RFC 7672, 2.2.2). It is the domain's name servers, or signatures, or our resolver. Try: dig +dnssec _25._tcp.mx1.a.test TLSA", "All is well"},
		{"an MX lookup that fails", "a.test", func(w *world) { w.signed["a.test MX"] = nil }, "TEMP", "Try: dig a.test MX", "All is well"},
		{"a service without a port", "[mx1.a.test]:what", func(*world) {}, "TEMP", "Write the port as a number", "All is well"},
		{"an exempt domain", "a.test", func(w *world) { w.held.ExemptBy = []exempt.Exemption{{Domain: "a.test"}} }, "NOTFOUND", "The domain has DANE: where the MTA does DANE, mail may still wait for the hosts: sts-tlsmap -probe a.test", ""},
		{"DANE at hosts that the policy does not list", "a.test", unlisted, "OK secure", "-exempt", "all is well"},
		{"DANE at a host beside one that the policy does not list", "a.test", func(w *world) {
			w.text = enforced
			w.held.Entry.Policy = w.text
		}, "OK dane-only", "with a map with DANE, mail goes to the hosts with TLSA records. Its policy does not list mx2.a.test", "-exempt"},
		{"lookups that fail at one host of two", "a.test", func(w *world) { w.signed["_25._tcp.mx1.a.test TLSA"] = nil }, "OK dane-only", "mail waits until it succeeds (RFC 7672, 2.2.2); with one that has tlsrpt too, mail goes to the other hosts", "All is well"},
		{"the daemon holds such a failure", "a.test", heldDANE(dane.SomeFailed, false), "OK dane-only", "mail goes again in 20s at the latest", "All is well"},
		{"addresses that cannot be looked up at one host of two", "a.test", func(w *world) {
			w.signed["_25._tcp.mx1.a.test TLSA"], w.signed["mx2.a.test A"], w.signed["mx2.a.test AAAA"] = []string{}, nil, nil
		}, "OK secure match=mx1.a.test ", "Mail goes to the other MX hosts: the addresses of some cannot be looked up. It is the domain's name servers, or signatures, or our resolver. Try: dig +dnssec mx2.a.test A", "waits"},
		{"no DANE and hosts that the policy does not list", "a.test", func(w *world) { unlisted(w); w.signed = nil; w.mx = []string{"10 mx1.a.test."} }, "OK secure", "-exempt", "DANE"},
		{"the daemon holds another state", "a.test", heldDANE(dane.Absent, false), "OK secure", "All is well", ""},
		{"the daemon holds a failure", "a.test", heldDANE(dane.Undecided, false), "TEMP", "mail goes again in 20s at the latest", "All is well"},
		{"the daemon keeps a state", "a.test", func(w *world) { heldDANE(dane.Usable, true)(w); w.signed = nil }, "OK dane-only", "Have that validate", "All is well"},
		{"the daemon holds another next-hop", "[mx1.a.test]", heldDANE(dane.Undecided, false), "OK dane-only", "All is well", ""},
		{"what was held is over", "a.test", func(w *world) { heldDANE(dane.Undecided, false)(w); w.held.DANE[1].Until = now }, "OK dane-only", "", "at the latest"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := daneDomain()
			w.text = strings.ReplaceAll(enforced, "mx: mx1.a.test", "mx: *.a.test")
			w.held.Entry.Policy = w.text
			test.change(w)
			r := w.gather(t, test.key)
			if got := replyOf(t, r, "postfix-dane"); !strings.HasPrefix(got.Reply, test.reply) {
				t.Errorf("%+v, want %s", got, test.reply)
			}
			if !strings.Contains(r.Next, test.next) || test.not != "" && strings.Contains(r.Next, test.not) {
				t.Errorf("next: %s", r.Next)
			}
		})
	}
}

func TestTheDaemonsDANEStateIsShownBesideTheLiveOne(t *testing.T) {
	w := daneDomain()
	w.held.DANE = []control.DANE{{NextHop: "a.test", State: dane.LookupFailed, Why: "so it was", Until: now.Add(20 * time.Second)}}
	shows(t, textOf(t, w.gather(t, "a.test")),
		"  so           DANE protects the domain: 1 of 1 hosts have usable TLSA records\n",
		"  held         for another 20s, by the daemon, which answers from it: a lookup fails, and only the MTA can tell: so it was\n",
	)
}

func TestWhyEximsMailWaitsIsExplained(t *testing.T) {
	w := honest()
	w.mx = []string{"10 evil.test."}
	if got := replyOf(t, w.gather(t, "a.test"), "exim"); got.Reply != "TEMP MTA-STS: a.test: none of its MX hosts is listed in its policy" || got.Why == "" {
		t.Errorf("%+v", got)
	}
}
