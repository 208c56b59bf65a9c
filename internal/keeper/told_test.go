package keeper_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

func TestAFailureToRefreshIsAnErrorOnceTheEndIsNear(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 4*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultFetch })
		for range 2 * 24 {
			s.mustHold(t, "example.com")
			settle(time.Hour)
		}
		if log := s.log.String(); strings.Contains(log, "about to expire") || !strings.Contains(log, "level=WARN") {
			t.Errorf("after two days of four:\n%s", log)
		}
		for range 24 + 12 {
			_, _ = s.lookup(t, "example.com")
			settle(time.Hour)
		}
		if !strings.Contains(s.log.String(), `level=ERROR msg="MTA-STS policy is about to expire`) {
			t.Errorf("after three and a half:\n%s", s.log)
		}
	})
}

func TestADeadResolverAndUntrustedCertificatesAreReportedApart(t *testing.T) {
	for _, test := range []struct {
		name                     string
		host                     fakeHost
		dns, fetch, untrustedToo bool
		line                     string
	}{
		{"resolver", fakeHost{recordErr: policy.ResultDNS}, true, false, false, "no TXT lookup has succeeded"},
		{"port 443", fakeHost{id: "1", fetchErr: policy.ResultFetch}, false, true, false, "no policy fetch has succeeded"},
		{"roots", fakeHost{id: "1", fetchErr: policy.ResultWebPKI, cause: policy.ErrCertUntrusted}, false, true, true, "no policy fetch has succeeded"},
	} {
		inSite(t, nil, func(t *testing.T, s *site) {
			for i := range 10 {
				d := strings.Repeat("x", i+1) + ".example"
				s.net.set(d, test.host)
				_, _ = s.lookup(t, d)
				settle(time.Minute)
			}
			got := s.Stats()
			if got.DNSDead != test.dns || got.FetchDead != test.fetch || got.Untrusted != test.untrustedToo {
				t.Errorf("%s: %+v", test.name, got)
			}
			if n := strings.Count(s.log.String(), "level=ERROR"); n != 1 || !strings.Contains(s.log.String(), test.line) {
				t.Errorf("%s: %d errors\n%s", test.name, n, s.log)
			}
		})
	}
}

func TestAnUnwritableDiskIsLoggedOnce(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.disk.set(func(d *faultyStore) { d.full = true })
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		settle(10 * time.Minute)
		if n := strings.Count(s.log.String(), "cannot write to the cache"); n != 1 || !s.Stats().Failing {
			t.Errorf("%d lines\n%s", n, s.log)
		}
		s.disk.set(func(d *faultyStore) { d.full = false })
		settle(time.Minute)
		if s.Stats().Failing {
			t.Error("it does not recover")
		}
	})
}

func TestALateRefresherIsLoggedOnce(t *testing.T) {
	inSite(t, func(o *keeper.Options) { o.FetchRate = 0.01 }, func(t *testing.T, s *site) {
		for i := range 1000 {
			s.net.enforced(fmt.Sprintf("d%d.example", i), 2*day)
			s.mustHold(t, fmt.Sprintf("d%d.example", i))
		}
		settle(44 * time.Hour)
		if n := strings.Count(s.log.String(), `level=ERROR msg="policies are refreshed late"`); n != 1 || s.Stats().LateSeconds < 3600 {
			t.Errorf("%d lines, %d s", n, s.Stats().LateSeconds)
		}
	})
}

func TestUnknownDomainsDoNotCrowdOutWarningsAboutHeldPolicies(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.fetchErr = policy.ResultWebPKI })
		for i := range 500 {
			d := fmt.Sprintf("s%d.example", i)
			s.net.set(d, fakeHost{id: "1", fetchErr: policy.ResultFetch})
			_, _ = s.lookup(t, d)
		}
		if _, err := s.Refresh(t.Context(), "example.com"); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(s.log.String(), "discovery failed"); n == 0 || n > 50 {
			t.Errorf("%d lines about strangers", n)
		}
		if !strings.Contains(s.log.String(), "could not be refreshed") || s.Stats().LogLinesDropped < 400 {
			t.Error("the warning is missing, or dropped lines are not counted")
		}
	})
}

func TestWhileNothingSucceedsNoDomainIsNamed(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		look := func(i int) {
			d := fmt.Sprintf("s%d.example", i)
			s.net.set(d, fakeHost{id: "1", fetchErr: policy.ResultFetch})
			_, _ = s.lookup(t, d)
			settle(time.Minute)
		}
		for i := range 10 {
			look(i)
		}
		before := s.log.String()
		for i := range 100 {
			look(10 + i)
		}
		if s.log.String() != before {
			t.Errorf("lines in an outage: %s", s.log.String()[len(before):])
		}
		s.net.enforced("good.example", day)
		s.mustHold(t, "good.example")
		settle(2 * time.Minute)
		look(2000)
		if !strings.Contains(s.log.String(), "s2000.example") || !strings.Contains(s.log.String(), "a policy fetch has succeeded again") {
			t.Error("still silent after the outage")
		}
	})
}
