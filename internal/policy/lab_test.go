package policy_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// short is a time-out for fetches that must run into it.
const short = 300 * time.Millisecond

// newClient returns a client that lives in the lab.
func newClient(t *testing.T, lab *testlab.T, change func(*policy.Config)) *policy.Client {
	t.Helper()
	dns, err := resolver.New(resolver.Config{Servers: []netip.AddrPort{netip.MustParseAddrPort(lab.DNS.Addr)}, Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	config := policy.Config{Resolver: dns, Roots: lab.CA.Pool(), AllowPrivate: true, Dial: lab.Dial, Timeout: 20 * time.Second, UserAgent: "sts-tlsmap/test"}
	if change != nil {
		change(&config)
	}
	c, err := policy.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wantError fails the test unless err is an *Error for domain with the result,
// and wraps inner.
func wantError(t *testing.T, err error, domain string, result policy.Result, inner error) {
	t.Helper()
	var e *policy.Error
	switch {
	case !errors.As(err, &e):
		t.Errorf("got %v; want an *Error", err)
	case e.Domain != domain || e.Result != result || policy.ResultOf(err) != result:
		t.Errorf("got %q for %q: %v; want %q for %q", e.Result, e.Domain, err, result, domain)
	case !errors.Is(err, inner):
		t.Errorf("got %v; want %v", err, inner)
	}
	if text := err.Error(); len(text) > 700 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("the error is not fit for a log: %q", text)
	}
}

func TestRFC8461_3_1_TheRecordIsFoundAtItsName(t *testing.T) {
	lab := testlab.New(t)
	lab.Domain("example.test", testlab.With{NoMail: true, ID: "20160831085700Z", TTL: 77})
	c := newClient(t, lab, nil)
	for _, domain := range []string{"example.test", "EXAMPLE.test"} {
		r, ttl, err := c.Record(t.Context(), domain)
		if err != nil || r.ID != "20160831085700Z" || ttl != 77*time.Second {
			t.Errorf("%s: got %+v, %v, %v", domain, r, ttl, err)
		}
	}
	if n := lab.DNS.Asked("_mta-sts.example.test", "TXT"); n != 2 || lab.DNS.Total() != 2 {
		t.Errorf("asked %d times for the record, %d times in all", n, lab.DNS.Total())
	}
}

func TestRFC8461_3_1_StringsOfARecordAreJoinedWithoutASpace(t *testing.T) {
	lab := testlab.New(t)
	lab.Set(`_mta-sts.example.test. 60 IN TXT "v=ST" "Sv1; i" "d=12" "34;"`)
	long := "v=STSv1; a=" + strings.Repeat("x", 300) + "; id=99"
	lab.DNS.SetTXT("_mta-sts.long.test", 60, long)
	c := newClient(t, lab, nil)
	if r, _, err := c.Record(t.Context(), "example.test"); err != nil || r.ID != "1234" {
		t.Errorf("got %+v, %v", r, err)
	}
	if r, _, err := c.Record(t.Context(), "long.test"); err != nil || r.ID != "99" {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestRFC8461_3_1_BytesOfARecordAreTakenAsTheyAre(t *testing.T) {
	lab := testlab.New(t)
	lab.Set(`_mta-sts.quotes.test. 60 IN TXT "v=STSv1; a=\"\\b; id=1"`,
		`_mta-sts.control.test. 60 IN TXT "v=STSv1; a=\001; id=1"`,
		`_mta-sts.letters.test. 60 IN TXT "\118=STSv1; id=\049"`)
	c := newClient(t, lab, nil)
	for _, domain := range []string{"quotes.test", "letters.test"} {
		if r, _, err := c.Record(t.Context(), domain); err != nil || r.ID != "1" {
			t.Errorf("%s: got %+v, %v", domain, r, err)
		}
	}
	_, _, err := c.Record(t.Context(), "control.test")
	wantError(t, err, "control.test", policy.ResultRecordInvalid, policy.ErrRecordInvalid)
}

func TestRFC8461_3_1_RecordAndPolicyHostMayBeCNAMEs(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("provider.test", testlab.With{NoMail: true, ID: "7"})
	host, err := d.Policy.Server.Host("mta-sts.customer.test")
	if err != nil {
		t.Fatal(err)
	}
	host.SetPolicy(exampleText)
	lab.Set("_mta-sts.customer.test. 60 IN CNAME a.customer.test.", "a.customer.test. 60 IN CNAME _mta-sts.provider.test.",
		"mta-sts.customer.test. 60 IN CNAME mta-sts.provider.test.")
	c := newClient(t, lab, nil)
	if r, _, err := c.Record(t.Context(), "customer.test"); err != nil || r.ID != "7" {
		t.Errorf("got %+v, %v", r, err)
	}
	f, err := c.Fetch(t.Context(), "customer.test", nil)
	if err != nil || string(f.Text) != exampleText {
		t.Errorf("got %+v, %v", f, err)
	}
	if n := d.Policy.Asked(); n != 0 {
		t.Errorf("the provider's own name was asked for %d times", n)
	}
}

func TestRFC8461_3_1_NoRecord(t *testing.T) {
	lab := testlab.New(t)
	lab.DNS.SetTXT("_mta-sts.others.test", 33, "v=spf1 -all")
	lab.DNS.SetTXT("_mta-sts.two.test", 44, "v=STSv1; id=1", "v=STSv1; id=2")
	lab.DNS.SetTXT("_mta-sts.broken.test", 55, "v=STSv1; id=")
	lab.DNS.Exists("_mta-sts.nodata.test")
	lab.DNS.Break("_mta-sts.servfail.test", "TXT", testlab.ServFail)
	c := newClient(t, lab, nil)
	long := strings.Repeat("a.", 120) + "test" // 244 characters: the record's name fits
	for _, tt := range []struct {
		domain string
		result policy.Result
		inner  error
		ttl    time.Duration // zero: any
		asked  int
	}{
		{"nxdomain.test", policy.ResultNoRecord, policy.ErrNoRecord, 0, 1},
		{"nodata.test", policy.ResultNoRecord, policy.ErrNoRecord, 0, 1},
		{"others.test", policy.ResultNoRecord, policy.ErrNoRecord, 33 * time.Second, 1},
		{"two.test", policy.ResultRecordInvalid, policy.ErrManyRecords, 44 * time.Second, 1},
		{"broken.test", policy.ResultRecordInvalid, policy.ErrRecordInvalid, 55 * time.Second, 1},
		{long, policy.ResultNoRecord, policy.ErrNoRecord, 0, 1},
		{"a" + long, policy.ResultNoRecord, policy.ErrNoRecord, 0, 0},
		{"not a name", policy.ResultNoRecord, policy.ErrNoRecord, 0, 0},
		{"192.0.2.1", policy.ResultNoRecord, policy.ErrNoRecord, 0, 0},
		{"", policy.ResultNoRecord, policy.ErrNoRecord, 0, 0},
	} {
		lab.DNS.Forget()
		_, ttl, err := c.Record(t.Context(), tt.domain)
		wantError(t, err, tt.domain, tt.result, tt.inner)
		var e *policy.Error
		if errors.As(err, &e) && (e.TTL != ttl || tt.ttl != 0 && ttl != tt.ttl) {
			t.Errorf("%s: TTL %v, in the error %v; want %v", tt.domain, ttl, e.TTL, tt.ttl)
		}
		if n := lab.DNS.Total(); n != tt.asked {
			t.Errorf("%s: %d questions; want %d", tt.domain, n, tt.asked)
		}
	}
	_, _, err := c.Record(t.Context(), "servfail.test")
	wantError(t, err, "servfail.test", policy.ResultDNS, policy.ErrRecordLookup)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = c.Record(ctx, "example.test")
	wantError(t, err, "example.test", policy.ResultDNS, policy.ErrRecordLookup)
}

func TestRFC8461_3_4_TheParentIsNeverAsked(t *testing.T) {
	lab := testlab.New(t)
	lab.Domain("example.test", testlab.With{NoMail: true})
	c := newClient(t, lab, nil)
	_, _, err := c.Record(t.Context(), "sub.example.test")
	wantError(t, err, "sub.example.test", policy.ResultNoRecord, policy.ErrNoRecord)
	_, err = c.Fetch(t.Context(), "sub.example.test", nil)
	wantError(t, err, "sub.example.test", policy.ResultFetch, policy.ErrHostAbsent)
	for _, q := range lab.DNS.Questions() {
		if !strings.HasSuffix(q.Name, "mta-sts.sub.example.test.") && !strings.HasSuffix(q.Name, "mta-sts.sub.example.test") {
			t.Errorf("asked for %s", q.Name)
		}
	}
}

func TestThePolicyHostIsDownOrAbsent(t *testing.T) {
	lab := testlab.New(t)
	down := lab.Domain("down.test", testlab.With{NoMail: true})
	if err := down.Policy.Server.Down(); err != nil {
		t.Fatal(err)
	}
	lab.Domain("absent.test", testlab.With{NoMail: true, NoPolicyHost: true})
	lab.Domain("broken.test", testlab.With{NoMail: true})
	lab.DNS.Break("mta-sts.broken.test", "", testlab.ServFail)
	half := lab.Domain("half.test", testlab.With{NoMail: true})
	lab.DNS.Break("mta-sts.half.test", "AAAA", testlab.ServFail)
	c := newClient(t, lab, nil)
	for domain, want := range map[string]error{"down.test": policy.ErrConnect, "absent.test": policy.ErrHostAbsent, "broken.test": policy.ErrHostLookup,
		"not a name": policy.ErrHostAbsent, strings.Repeat("a.", 121) + "test": policy.ErrHostAbsent} {
		_, err := c.Fetch(t.Context(), domain, nil)
		wantError(t, err, domain, policy.ResultFetch, want)
	}
	if _, err := c.Fetch(t.Context(), "half.test", nil); err != nil || half.Policy.Asked() != 1 {
		t.Errorf("a host of which one family cannot be looked up: %v", err)
	}
}

func TestRFC8461_10_3_SpecialAddressesAreRefused(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	c := newClient(t, lab, func(c *policy.Config) { c.AllowPrivate = false })
	server := d.Policy.Server
	_, err := c.Fetch(t.Context(), "example.test", nil)
	wantError(t, err, "example.test", policy.ResultFetch, policy.ErrAddressRefused)
	if server.Connections() != 0 || !strings.Contains(err.Error(), "loopback (RFC 1122") {
		t.Errorf("%d connections, %v", server.Connections(), err)
	}
	// An ordinary address beside it is used, and it alone.
	lab.Set(fmt.Sprintf("mta-sts.example.test. 60 IN A %s", server.Addr), "mta-sts.example.test. 60 IN A 93.184.215.14")
	lab.Route("93.184.215.14", 443, server.Real)
	f, err := c.Fetch(t.Context(), "example.test", nil)
	if err != nil || f.Addr.String() != "93.184.215.14" {
		t.Errorf("got %+v, %v", f, err)
	}
}

func TestAClientNeedsResolverAuthoritiesAndTimeout(t *testing.T) {
	lab := testlab.New(t)
	dns, err := resolver.New(resolver.Config{Servers: []netip.AddrPort{netip.MustParseAddrPort(lab.DNS.Addr)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range []policy.Config{
		{Resolver: dns, Timeout: time.Minute}, {Roots: lab.CA.Pool(), Timeout: time.Minute}, {Resolver: dns, Roots: lab.CA.Pool()},
	} {
		if _, err := policy.NewClient(config); err == nil {
			t.Errorf("a client was made of %+v", config)
		}
	}
}
