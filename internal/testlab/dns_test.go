package testlab_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// within limits the wait on real sockets.
const within = 10 * time.Second

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	return ctx
}

// question returns a query with EDNS0 and the AD bit.
func question(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	m.SetEdns0(1232, false)
	m.AuthenticatedData = true
	return m
}

func ask(t *testing.T, l *testlab.T, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, UDPSize: dns.MaxMsgSize, Timeout: within}
	r, _, err := c.Exchange(m, l.DNS.Addr)
	if err != nil {
		t.Fatalf("asking over %s: %v", network, err)
	}
	return r
}

// short formats an answer as one line: rcode, flags, records.
func short(m *dns.Msg) string {
	var b strings.Builder
	b.WriteString(dns.RcodeToString[m.Rcode])
	for _, f := range []struct {
		set  bool
		name string
	}{{m.Truncated, "TC"}, {m.AuthenticatedData, "AD"}} {
		if f.set {
			b.WriteString(" " + f.name)
		}
	}
	for _, rr := range m.Answer {
		b.WriteString(" | " + strings.Join(strings.Fields(rr.String()), " "))
	}
	for _, rr := range m.Ns {
		fmt.Fprintf(&b, " / %s %d", dns.TypeToString[rr.Header().Rrtype], rr.Header().Ttl)
	}
	return b.String()
}

func TestAnswersAsAResolverDoes(t *testing.T) {
	l := testlab.New(t)
	l.Set(
		"example.test. 300 IN MX 10 mx1.example.test.",
		"example.test. 300 IN MX 20 mx2.example.test.",
		"alias.test. 300 IN CNAME middle.test.",
		"middle.test. 300 IN CNAME end.test.",
		"end.test. 300 IN A 192.0.2.1",
		"dangling.test. 300 IN CNAME nowhere.test.",
		"loop.test. 300 IN CNAME loop.test.",
		"a.deep.down.test. 300 IN A 192.0.2.2",
		"*.wild.test. 300 IN A 192.0.2.3",
		"here.wild.test. 300 IN TXT \"x\"",
	)
	l.DNS.Exists("bare.test")
	l.DNS.SetTXT("long.test", 60, strings.Repeat("x", 300), `quo"te`)
	l.DNS.Func("made.test", func(name string, qtype uint16) []dns.RR {
		if name == "no.made.test." {
			return nil
		}
		rr, _ := dns.NewRR(name + " 60 IN A 192.0.2.9")
		return []dns.RR{rr}
	})
	for _, c := range []struct{ name, qtype, want string }{
		{"Example.TEST", "MX", "NOERROR | example.test. 300 IN MX 10 mx1.example.test. | example.test. 300 IN MX 20 mx2.example.test."},
		{"alias.test", "A", "NOERROR | alias.test. 300 IN CNAME middle.test. | middle.test. 300 IN CNAME end.test. | end.test. 300 IN A 192.0.2.1"},
		{"alias.test", "CNAME", "NOERROR | alias.test. 300 IN CNAME middle.test."},
		{"alias.test", "AAAA", "NOERROR | alias.test. 300 IN CNAME middle.test. | middle.test. 300 IN CNAME end.test. / SOA 60"},
		{"dangling.test", "A", "NXDOMAIN | dangling.test. 300 IN CNAME nowhere.test. / SOA 60"},
		{"loop.test", "A", "SERVFAIL"},
		{"deep.down.test", "A", "NOERROR / SOA 60"},
		{"b.deep.down.test", "A", "NXDOMAIN / SOA 60"},
		{"x.wild.test", "A", "NOERROR | x.wild.test. 300 IN A 192.0.2.3"},
		{"here.wild.test", "A", "NOERROR / SOA 60"},
		{"below.here.wild.test", "A", "NXDOMAIN / SOA 60"},
		{"bare.test", "TXT", "NOERROR / SOA 60"},
		{"long.test", "TXT", `NOERROR | long.test. 60 IN TXT "` + strings.Repeat("x", 255) + `" "` + strings.Repeat("x", 45) + `" | long.test. 60 IN TXT "quo\"te"`},
		{"any.made.test", "A", "NOERROR | any.made.test. 60 IN A 192.0.2.9"},
		{"no.made.test", "A", "NXDOMAIN / SOA 60"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(c.name+" "+c.qtype+" over "+network, func(t *testing.T) {
				got := short(ask(t, l, network, question(c.name, dns.StringToType[c.qtype])))
				if got != c.want {
					t.Errorf("got  %s\nwant %s", got, c.want)
				}
			})
		}
	}
}

func TestChangesWhileItRuns(t *testing.T) {
	l := testlab.New(t)
	get := func() string { return short(ask(t, l, "udp", question("x.test", dns.TypeA))) }
	want := func(s string) {
		t.Helper()
		if got := get(); got != s {
			t.Errorf("got %q, want %q", got, s)
		}
	}
	want("NXDOMAIN / SOA 60")
	l.Set("x.test. 60 IN A 192.0.2.1")
	want("NOERROR | x.test. 60 IN A 192.0.2.1")
	l.Set("x.test. 60 IN A 192.0.2.2")
	want("NOERROR | x.test. 60 IN A 192.0.2.2")
	if err := l.DNS.Add("x.test. 60 IN A 192.0.2.3"); err != nil {
		t.Fatal(err)
	}
	want("NOERROR | x.test. 60 IN A 192.0.2.2 | x.test. 60 IN A 192.0.2.3")
	l.Set("x.test. 60 IN TXT still-here")
	l.DNS.Remove("x.test", dns.TypeA)
	want("NOERROR / SOA 60")
	l.DNS.Remove("x.test")
	want("NXDOMAIN / SOA 60")
	if n := l.DNS.Asked("X.test.", "A"); n != 6 {
		t.Errorf("asked %d times, want 6", n)
	}
	if err := l.DNS.Set("x.test. 60 IN A not-an-address"); err == nil {
		t.Error("an invalid record was accepted")
	}
}

func TestGivesOutTheRecordsOfAZone(t *testing.T) {
	l := testlab.New(t)
	l.Set(
		"zone.test. 60 IN MX 10 mx.zone.test.",
		"mx.zone.test. 60 IN A 192.0.2.1",
		"mx.zone.test. 60 IN A 192.0.2.2",
		"mx.zone.test. 60 IN TXT \"x\"",
		"otherzone.test. 60 IN A 192.0.2.3",
	)
	if n := len(l.DNS.Below("Zone.test")); n != 4 {
		t.Errorf("%d records at and below zone.test, want 4", n)
	}
	if n := len(l.DNS.Below("mx.zone.test")); n != 3 {
		t.Errorf("%d records at mx.zone.test, want 3", n)
	}
}

func TestSetsTheADBitForSignedNamesOnRequest(t *testing.T) {
	l := testlab.New(t)
	l.Set(
		"signed.test. 60 IN A 192.0.2.1",
		"unsigned.test. 60 IN A 192.0.2.1",
		"out.signed.test. 60 IN CNAME unsigned.test.",
		"hole.signed.test. 60 IN A 192.0.2.1",
	)
	l.DNS.Sign("signed.test", true)
	l.DNS.Sign("hole.signed.test", false)
	ad, do, plain := question("", 0), question("", 0), question("", 0)
	do.AuthenticatedData, plain.AuthenticatedData = false, false
	do.IsEdns0().SetDo()
	for _, c := range []struct {
		name string
		how  *dns.Msg
		want bool
	}{
		{"signed.test", ad, true},
		{"signed.test", do, true},
		{"signed.test", plain, false},
		{"absent.signed.test", ad, true},
		{"hole.signed.test", ad, false},
		{"out.signed.test", ad, false},
		{"unsigned.test", ad, false},
	} {
		m := c.how.Copy()
		m.Question[0] = dns.Question{Name: dns.Fqdn(c.name), Qtype: dns.TypeA, Qclass: dns.ClassINET}
		if got := ask(t, l, "udp", m).AuthenticatedData; got != c.want {
			t.Errorf("%s (AD %v, DO %v): AD is %v", c.name, m.AuthenticatedData, m.IsEdns0().Do(), got)
		}
	}
}

func TestABrokenNameIsServFailUntilItIsMended(t *testing.T) {
	l := testlab.New(t)
	l.Set("x.test. 60 IN A 192.0.2.1")
	l.DNS.Sign("x.test", true)
	for _, network := range []string{"udp", "tcp"} {
		l.DNS.Break("x.test", "A", testlab.ServFail)
		if got := outcome(t, l, network); got != "SERVFAIL" {
			t.Errorf("%s: %s", network, got)
		}
		l.DNS.Mend("x.test", "A")
		if got := outcome(t, l, network); got != "NOERROR AD | x.test. 60 IN A 192.0.2.1" {
			t.Errorf("%s, mended: %s", network, got)
		}
	}
}

// outcome summarizes the answer for x.test A.
func outcome(t *testing.T, l *testlab.T, network string) string {
	return short(ask(t, l, network, question("x.test", dns.TypeA)))
}

func TestASilentServerGivesNoAnswerUntilItIsMended(t *testing.T) {
	l := testlab.New(t)
	l.Set("x.test. 60 IN A 192.0.2.1")
	l.DNS.Break("*", "", testlab.Silent)
	c, err := net.Dial("udp", l.DNS.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(within))
	for id := range uint16(2) { // the first is lost, the second is answered
		q := question("x.test", dns.TypeA)
		q.Id = id
		out, _ := q.Pack()
		c.Write(out)
		if err := l.Await(bounded(t), func() bool { return l.DNS.Total() == int(id)+1 }); err != nil {
			t.Fatal(err)
		}
		l.DNS.Mend("*", "")
	}
	in := make([]byte, 512)
	n, err := c.Read(in)
	r := new(dns.Msg)
	if err != nil || r.Unpack(in[:n]) != nil || r.Id != 1 {
		t.Errorf("the first answer is %v (%v), want that to the second question", r, err)
	}
}

func TestAHeldAnswerComesWhenTheGateIsOpened(t *testing.T) {
	l := testlab.New(t)
	l.Set("x.test. 60 IN A 192.0.2.1", "y.test. 60 IN CNAME x.test.")
	gate := l.DNS.Hold("x.test", "A")
	got := make(chan string, 1)
	go func() { got <- outcome(t, l, "udp") }()
	if err := l.Await(bounded(t), func() bool { return gate.Waiting() == 1 }); err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-got:
		t.Fatalf("answered at a closed gate: %s", s)
	default:
	}
	gate.Open()
	if s := <-got; s != "NOERROR | x.test. 60 IN A 192.0.2.1" {
		t.Error(s)
	}
}

func TestAFaultAtTheEndOfAnAliasBreaksTheWholeAnswer(t *testing.T) {
	l := testlab.New(t)
	l.Set("x.test. 60 IN CNAME y.test.", "y.test. 60 IN A 192.0.2.1")
	l.DNS.Break("y.test", "", testlab.ServFail)
	if got := outcome(t, l, "udp"); got != "SERVFAIL" {
		t.Errorf("got %q", got)
	}
}

func TestTruncatesWhatDoesNotFit(t *testing.T) {
	l := testlab.New(t)
	l.DNS.SetTXT("big.test", 60, strings.Repeat("a", 900), strings.Repeat("b", 900))
	for _, c := range []struct {
		network string
		size    uint16 // of EDNS0; 0 without
		tc      bool
	}{{"udp", 0, true}, {"udp", 1232, true}, {"udp", 4096, false}, {"tcp", 0, false}} {
		m := new(dns.Msg).SetQuestion("big.test.", dns.TypeTXT)
		if c.size > 0 {
			m.SetEdns0(c.size, false)
		}
		r := ask(t, l, c.network, m)
		if r.Truncated != c.tc || (len(r.Answer) == 2) == c.tc {
			t.Errorf("%s, size %d: TC %v with %d records", c.network, c.size, r.Truncated, len(r.Answer))
		}
	}
}

func TestRemembersWhatItWasAsked(t *testing.T) {
	l := testlab.New(t)
	m := question("One.test", dns.TypeTXT)
	m.IsEdns0().SetDo()
	ask(t, l, "udp", m)
	ask(t, l, "tcp", new(dns.Msg).SetQuestion("two.test.", dns.TypeMX))
	got := l.DNS.Questions()
	want := []testlab.Question{
		{Name: "One.test.", Type: dns.TypeTXT, AD: true, DO: true, UDPSize: 1232},
		{Name: "two.test.", Type: dns.TypeMX, TCP: true},
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if l.DNS.Total() != 2 || l.DNS.Asked("one.test", "") != 1 || l.DNS.Asked("one.test", "MX") != 0 {
		t.Error("wrong counts")
	}
	l.DNS.Forget()
	if l.DNS.Total() != 0 || l.DNS.Asked("one.test", "") != 0 || len(l.DNS.Questions()) != 0 {
		t.Error("questions remain after Forget")
	}
}
