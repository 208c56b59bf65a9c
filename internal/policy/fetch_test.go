package policy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

func TestRFC8461_3_3_ThePolicyIsFetched(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true, Policy: exampleText})
	f, err := newClient(t, lab, nil).Fetch(t.Context(), "Example.TEST", nil)
	if err != nil {
		t.Fatal(err)
	}
	if string(f.Text) != exampleText || f.Policy.Mode != policy.ModeEnforce || f.Addr != d.Policy.Server.Addr || f.Duration <= 0 {
		t.Errorf("got %+v", f)
	}
	r := d.Policy.Requests()
	if len(r) != 1 || r[0].SNI != "mta-sts.example.test" || r[0].Host != "mta-sts.example.test" ||
		r[0].Method != "GET" || r[0].Path != "/.well-known/mta-sts.txt" {
		t.Fatalf("the policy host saw %+v", r)
	}
	want := http.Header{"User-Agent": {"sts-tlsmap/test"}, "Accept": {"text/plain"}, "Cache-Control": {"no-cache"}, "Connection": {"close"}}
	if fmt.Sprint(r[0].Header) != fmt.Sprint(want) {
		t.Errorf("the policy host saw the header %v; want %v", r[0].Header, want)
	}
}

func TestRFC8461_3_3_NothingIsCached(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	d.Policy.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Cache-Control", "max-age=86400, immutable")
		w.Header().Set("ETag", `"1"`)
		w.Header().Set("Set-Cookie", "a=b")
		io.WriteString(w, exampleText)
	}))
	c := newClient(t, lab, nil)
	for range 2 {
		if _, err := c.Fetch(t.Context(), "example.test", nil); err != nil {
			t.Fatal(err)
		}
	}
	r := d.Policy.Requests()
	if len(r) != 2 || d.Policy.Handshakes() != 2 || r[1].Header.Get("If-None-Match") != "" || r[1].Header.Get("Cookie") != "" {
		t.Errorf("the policy host saw %+v", r)
	}
}

func TestRFC8461_3_3_TheCertificateMustBeValid(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	c := newClient(t, lab, nil)
	for kind, want := range map[testlab.CertKind]error{
		testlab.CertExpired:     policy.ErrCertExpired,
		testlab.CertNotYetValid: policy.ErrCertExpired,
		testlab.CertWrongName:   policy.ErrCertName,
		testlab.CertNoName:      policy.ErrCertName, // only DNS-IDs count
		testlab.CertSelfSigned:  policy.ErrCertUntrusted,
		testlab.CertOtherCA:     policy.ErrCertUntrusted,
	} {
		if err := d.Policy.Present(kind); err != nil {
			t.Fatal(err)
		}
		_, err := c.Fetch(t.Context(), "example.test", nil)
		wantError(t, err, "example.test", policy.ResultWebPKI, want)
	}
	if d.Policy.Asked() != 0 {
		t.Error("a request was sent to a host that was not authenticated")
	}
	for _, name := range []string{"mta-sts.example.test", "*.example.test"} {
		present(t, lab, d.Policy, name)
		if _, err := c.Fetch(t.Context(), "example.test", nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"*.test", "*.*.test", "m*.example.test", "example.test"} {
		present(t, lab, d.Policy, name)
		_, err := c.Fetch(t.Context(), "example.test", nil)
		wantError(t, err, "example.test", policy.ResultWebPKI, policy.ErrCertName)
	}
}

func TestDatesOfACertificateAreOurFaultWhileTheClockIsInDoubt(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	inDoubt := true
	c := newClient(t, lab, func(c *policy.Config) { c.ClockInDoubt = func() bool { return inDoubt } })
	for kind, ours := range map[testlab.CertKind]bool{
		testlab.CertExpired: true, testlab.CertNotYetValid: true, testlab.CertWrongName: false, testlab.CertOtherCA: false,
	} {
		if err := d.Policy.Present(kind); err != nil {
			t.Fatal(err)
		}
		for _, inDoubt = range []bool{true, false} {
			_, err := c.Fetch(t.Context(), "example.test", nil)
			if policy.ResultOf(err) != policy.ResultWebPKI || policy.OurFault(err) != (ours && inDoubt) || errors.Is(err, policy.ErrClock) != (ours && inDoubt) {
				t.Errorf("certificate %v, clock in doubt %t: %v; our fault: %t", kind, inDoubt, err, policy.OurFault(err))
			}
		}
	}
}

// A validating resolver on this machine goes by the same clock.
func TestServfailIsOurFaultWhileTheClockIsInDoubt(t *testing.T) {
	lab := testlab.New(t)
	lab.Domain("example.test", testlab.With{NoMail: true})
	inDoubt := false
	c := newClient(t, lab, func(c *policy.Config) { c.ClockInDoubt = func() bool { return inDoubt } })
	lab.DNS.Break("_mta-sts.example.test", "", testlab.ServFail)
	lab.DNS.Break("mta-sts.example.test", "", testlab.ServFail)
	for domain, ours := range map[string]bool{"example.test": true, "absent.test": false} {
		for _, inDoubt = range []bool{true, false} {
			_, _, recordErr := c.Record(t.Context(), domain)
			_, fetchErr := c.Fetch(t.Context(), domain, nil)
			for _, err := range []error{recordErr, fetchErr} {
				if err == nil || policy.OurFault(err) != (ours && inDoubt) || errors.Is(err, policy.ErrClock) != (ours && inDoubt) ||
					strings.Contains(policy.Hint(err), "clock of this machine") != (ours && inDoubt) {
					t.Errorf("clock in doubt %t: %v; our fault: %t", inDoubt, err, policy.OurFault(err))
				}
			}
		}
	}
}

func present(t *testing.T, lab *testlab.T, h *testlab.PolicyHost, names ...string) {
	t.Helper()
	cert, err := lab.Issue(testlab.CertGood, names...)
	if err != nil {
		t.Fatal(err)
	}
	h.PresentCertificate(cert)
}

func TestAChainWithoutItsIntermediateIsExplained(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	c := newClient(t, lab, nil)
	for kind, lacks := range map[testlab.CertKind]bool{
		testlab.CertNoIntermediate: true, testlab.CertSelfSigned: false, testlab.CertOtherCA: false,
	} {
		if err := d.Policy.Present(kind); err != nil {
			t.Fatal(err)
		}
		_, err := c.Fetch(t.Context(), "example.test", nil)
		wantError(t, err, "example.test", policy.ResultWebPKI, policy.ErrCertUntrusted)
		words := `the chain lacks the certificate of the issuer "CN=Intermediate CA 1"`
		if strings.Contains(err.Error(), words) != lacks || strings.Contains(err.Error(), "browsers hide") != lacks {
			t.Errorf("kind %d: %v", kind, err)
		}
	}
}

func TestACertificateWithManyStrangeNamesMakesAShortError(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	names := make([]string, 200)
	for i := range names {
		names[i] = strings.Repeat("x", 50) + fmt.Sprintf("%d.test", i)
	}
	present(t, lab, d.Policy, names...)
	_, err := newClient(t, lab, nil).Fetch(t.Context(), "example.test", nil)
	wantError(t, err, "example.test", policy.ResultWebPKI, policy.ErrCertName)
	if !strings.Contains(err.Error(), "...") {
		t.Errorf("got %v", err)
	}
}

// faults are the ways of a policy host to misbehave that end at once.
var faults = []struct {
	name  string
	fault testlab.PolicyFault
	want  error // nil: a StatusError
}{
	{"404", testlab.Status404, nil},
	{"500", testlab.Status500, nil},
	{"204", testlab.Status204, nil},
	{"203", testlab.Status203, nil},
	{"a redirect", testlab.Redirect, nil},
	{"text/html", testlab.HTML, policy.ErrMediaType},
	{"no media type", testlab.NoContentType, policy.ErrMediaType},
	{"an endless body", testlab.Endless, policy.ErrTooLarge},
	{"an endless header", testlab.EndlessHeader, policy.ErrHTTP},
	{"a huge header", testlab.HugeHeader, policy.ErrHTTP},
	{"a body cut short", testlab.CutBody, policy.ErrHTTP},
	{"a body compressed unasked", testlab.Compressed, policy.ErrHTTP},
	{"something else than HTTP", testlab.NotHTTP, policy.ErrHTTP},
	{"something else than TLS", testlab.NotTLS, policy.ErrTLS},
	{"a reset at the handshake", testlab.ResetHandshake, policy.ErrTLS},
	{"an alert at the handshake", testlab.HandshakeRefused, policy.ErrTLS},
	{"TLS 1.1", testlab.OldTLS, policy.ErrTLS},
	{"a client certificate wanted", testlab.ClientCertificateOnly, policy.ErrHTTP}, // TLS 1.3 says so after the handshake
}

func TestRFC8461_3_3_AnyOtherAnswerOfThePolicyHostIsNoPolicy(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	c := newClient(t, lab, nil)
	for _, tt := range faults {
		t.Run(tt.name, func(t *testing.T) {
			d.Policy.Behave(tt.fault)
			_, err := c.Fetch(t.Context(), "example.test", nil)
			want := tt.want
			if status := (*policy.StatusError)(nil); want == nil && errors.As(err, &status) {
				want = status
			}
			wantError(t, err, "example.test", policy.ResultFetch, want)
			if policy.Hint(err) == "" {
				t.Errorf("no hint for %v", err)
			}
		})
	}
	d.Policy.Behave(testlab.PolicyFine)
	if _, err := c.Fetch(t.Context(), "example.test", nil); err != nil {
		t.Errorf("well-behaved again: %v", err)
	}
}

func TestOneServerOfAPolicyHostThatRefusesTheHandshakeDoesNotHideTheOther(t *testing.T) {
	for name, fault := range map[string]testlab.PolicyFault{
		"a reset": testlab.ResetHandshake, "an alert": testlab.HandshakeRefused, "something else than TLS": testlab.NotTLS,
	} {
		for _, proxied := range []bool{false, true} {
			lab := testlab.New(t)
			good := lab.Domain("example.test", testlab.With{NoMail: true})
			other := lab.PolicyServer("")
			bad, err := other.Host("mta-sts.example.test")
			if err != nil {
				t.Fatal(err)
			}
			bad.Behave(fault)
			onTheInternet(lab, good, "93.184.215.14", "93.184.215.15")
			other.AlsoAt("93.184.215.14")
			c := newClient(t, lab, func(c *policy.Config) {
				if proxied {
					through(lab.Proxy.URL())(c)
				}
			})
			f, err := c.Fetch(t.Context(), "example.test", nil)
			if err != nil || f.Addr.String() != "93.184.215.15" || bad.Handshakes() != 1 {
				t.Errorf("%s, through a proxy %v: %+v, %v, %d handshakes at the first", name, proxied, f, err, bad.Handshakes())
			}
		}
	}
}

func TestRFC8461_3_3_RedirectsAreNotFollowed(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true, PolicyFault: testlab.Redirect})
	_, err := newClient(t, lab, nil).Fetch(t.Context(), "example.test", nil)
	var status *policy.StatusError
	if !errors.As(err, &status) || status.Code != 302 || !strings.Contains(err.Error(), "policy-has-moved-here") {
		t.Errorf("got %v", err)
	}
	if d.Policy.Asked() != 1 {
		t.Errorf("%d requests", d.Policy.Asked())
	}
}

// stalled is a time-out for fetches that must reach the policy host on a busy
// machine, and then run into it.
const stalled = 2 * time.Second

func TestRFC8461_3_3_AFetchEndsInTime(t *testing.T) {
	lab := testlab.New(t)
	c := newClient(t, lab, func(c *policy.Config) { c.Timeout = stalled })
	var fetches sync.WaitGroup
	for domain, fault := range map[string]testlab.PolicyFault{
		"handshake.test": testlab.StallHandshake, "request.test": testlab.StallRequest, "body.test": testlab.StallBody,
		"dripping-body.test": testlab.Drip, "dripping-header.test": testlab.DripHeader,
	} {
		lab.Domain(domain, testlab.With{NoMail: true, PolicyFault: fault})
		fetches.Go(func() {
			start := time.Now()
			_, err := c.Fetch(t.Context(), domain, nil)
			wantError(t, err, domain, policy.ResultFetch, policy.ErrTimeout)
			if took := time.Since(start); took < stalled || took > 20*stalled {
				t.Errorf("%s: it took %v", domain, took)
			}
		})
	}
	fetches.Wait()
}

func TestRFC8461_3_3_TheCallerCanGiveUp(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	gate := d.Policy.Hold()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		lab.Await(t.Context(), func() bool { return gate.Waiting() > 0 })
		cancel()
	}()
	_, err := newClient(t, lab, nil).Fetch(ctx, "example.test", nil)
	wantError(t, err, "example.test", policy.ResultFetch, context.Canceled)
}
