package reporting_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
)

// failedFetches runs a service for a time while it is told of failures of some domains,
// and returns what is stored of one.
func failedFetches(t *testing.T, of string, dead func(since time.Duration) bool) (day tlsrpt.DomainDay) {
	c, resets := settings(t), 0
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		s, logged, stop := run(t, reporting.Options{
			Config: c,
			Passed: (*net.UDPConn)(nil), // no network in here: the socket is never ready
			Negative: func(domain string) (keeper.Negative, bool) {
				switch domain {
				case "broken.test":
					return keeper.Negative{Proven: true, Domain: domain, Result: policy.ResultWebPKI, Err: "the policy host's certificate is expired"}, true
				case "reset.test": // as the policy fetcher says it, with another port at each attempt
					resets++
					return keeper.Negative{Proven: true, Domain: domain, Result: policy.ResultFetch, Err: fmt.Sprintf("the TLS handshake with the policy host failed: "+
						"TLS with 192.0.2.1: read tcp 10.0.0.1:%d->192.0.2.1:443: read: connection reset by peer", 40000+resets)}, true
				case "dns.test":
					return keeper.Negative{Proven: true, Domain: domain, Result: policy.ResultFetch, Err: "the policy host's addresses could not be looked up: " +
						"DNS A mta-sts.dns.test: SERVFAIL (server 10.0.0.53:53): " + strings.Repeat("x", tlsrpt.MaxText)}, true
				case "unproven.test":
					return keeper.Negative{Domain: domain, Result: policy.ResultFetch, Err: "no connection"}, true
				case "gone.test": // since the lookup
					return keeper.Negative{Domain: domain, Result: policy.ResultNoRecord, Err: "no record"}, true
				}
				return keeper.Negative{}, false
			},
			FetchDead: func() bool { return dead(time.Since(begun)) },
		})
		synctest.Wait()
		for range 3 {
			s.Failed([]byte("broken.test"), nil)
			for _, other := range []string{"forgotten.test", "reset.test", "dns.test", "gone.test", "unproven.test"} {
				s.Failed([]byte(other), nil)
			}
		}
		time.Sleep(11 * time.Minute)
		stop()
		day = stored(t, c.Path, of)
		if lost := s.Stats().Lost; lost > 0 {
			t.Errorf("%d lost\n%s", lost, logged)
		}
	})
	return day
}

func TestRFC8460_4_3_APolicyThatCouldNotBeFetchedIsCounted(t *testing.T) {
	day := failedFetches(t, "broken.test", func(time.Duration) bool { return false })
	want := tlsrpt.Failure{Result: tlsrpt.STSWebPKIInvalid, Reason: "the policy host's certificate is expired"}
	if len(day.Policies) != 1 {
		t.Fatalf("got %+v", day)
	}
	p := day.Policies[0]
	if p.Policy.Type != tlsrpt.TypeSTS || p.Policy.Domain != "broken.test" || p.Failed != 3 || p.Successful != 0 ||
		len(p.Details) != 1 || p.Details[0].Failure != want || p.Details[0].Sessions != 3 {
		t.Errorf("got %+v", p)
	}
}

func TestRFC8460_4_3_AnMXHostThatThePolicyDoesNotListIsAValidationFailure(t *testing.T) {
	c := settings(t)
	var day tlsrpt.DomainDay
	synctest.Test(t, func(t *testing.T) {
		s, logged, stop := run(t, reporting.Options{
			Config: c,
			Passed: (*net.UDPConn)(nil),
			Policy: func(domain string) ([]byte, bool) {
				return []byte("version: STSv1\nmode: enforce\nmx: mx.moved.test\nmax_age: 604800\n"), domain == "moved.test"
			},
			FetchDead: func() bool { return false },
		})
		synctest.Wait()
		for range 3 {
			s.Failed([]byte("moved.test"), []string{"old.test", "older.test"})
			s.Failed([]byte("forgotten.test"), []string{"old.test"})
		}
		time.Sleep(6 * time.Second)
		s.Failed([]byte("moved.test"), []string{"old.test", "older.test"})
		synctest.Wait()
		stop()
		day = stored(t, c.Path, "moved.test")
		if lost := s.Stats().Lost; lost > 0 {
			t.Errorf("%d lost\n%s", lost, logged)
		}
	})
	if len(day.Policies) != 1 {
		t.Fatalf("got %+v", day)
	}
	p := day.Policies[0]
	if p.Policy.Type != tlsrpt.TypeSTS || strings.Join(p.Policy.MXHosts, " ") != "mx.moved.test" || len(p.Policy.Strings) != 4 ||
		p.Failed != 4 || p.Successful != 0 || len(p.Details) != 2 {
		t.Errorf("got %+v", p)
	}
	for _, d := range p.Details {
		if want := (tlsrpt.Failure{Result: tlsrpt.ValidationFailure, MXHost: d.MXHost, Reason: "mx-mismatch"}); d.Failure != want || d.Sessions != 4 ||
			d.MXHost != "old.test" && d.MXHost != "older.test" {
			t.Errorf("got %+v", d)
		}
	}
}

// The worst mistake would be to tell domains of our own outage.
func TestAnOutageOfOursIsNoDomainsFailureAlsoWhereItIsNoticedLate(t *testing.T) {
	day := failedFetches(t, "broken.test", func(since time.Duration) bool { return since > 5*time.Minute && since < 6*time.Minute })
	if len(day.Policies) > 0 {
		t.Errorf("got %+v", day)
	}
}

func TestAReportSaysNothingOfOurNetwork(t *testing.T) {
	for domain, want := range map[string]string{
		"reset.test": "the TLS handshake with the policy host failed: TLS with 192.0.2.1: read: connection reset by peer",
		"dns.test":   "the policy host's addresses could not be looked up: DNS A mta-sts.dns.test: SERVFAIL: xxx",
	} {
		day := failedFetches(t, domain, func(time.Duration) bool { return false })
		if len(day.Policies) != 1 || len(day.Policies[0].Details) != 1 || day.Policies[0].Details[0].Sessions != 3 ||
			!strings.HasPrefix(day.Policies[0].Details[0].Reason, want) {
			t.Errorf("%s: got %+v", domain, day)
		}
	}
}

func TestAFailureThatTheStandardDoesNotNameOrThatMayBeOursIsNotCounted(t *testing.T) {
	for _, of := range []string{"gone.test", "unproven.test"} {
		if day := failedFetches(t, of, func(time.Duration) bool { return false }); len(day.Policies) > 0 {
			t.Errorf("got %+v", day)
		}
	}
}
