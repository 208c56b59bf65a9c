package keeper

import (
	"strings"
	"testing"
	"time"

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

func TestARecordThatIsGoneIsTold(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		s.net.change("example.com", func(h *fakeHost) { h.recordErr = policy.ResultNoRecord })
		settle(5 * day)
		if !strings.Contains(s.log.String(), "MTA-STS record is gone") {
			t.Errorf("%s", s.log)
		}
	})
}

func TestADeadResolverIsToldApartFromCertificatesThatNobodyTrusts(t *testing.T) {
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
			if got.DNSDead != test.dns || got.FetchDead != test.fetch || got.Untrusted != test.untrustedToo || !got.Trouble {
				t.Errorf("%s: %+v", test.name, got)
			}
			if n := strings.Count(s.log.String(), "level=ERROR"); n != 1 || !strings.Contains(s.log.String(), test.line) {
				t.Errorf("%s: %d errors\n%s", test.name, n, s.log)
			}
		})
	}
}

func TestALateRefresherIsOneError(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		late := false
		for _, by := range []time.Duration{time.Minute, 2 * time.Hour, 3 * time.Hour} {
			s.fetch.late.Store(int64(by / time.Second))
			if got := s.Stats().LateSeconds; got != int64(by/time.Second) {
				t.Errorf("%d s", got)
			}
			late = s.reportLateness(late)
		}
		if n := strings.Count(s.log.String(), `level=ERROR msg="the refresher is late"`); n != 1 || !late {
			t.Errorf("%d lines\n%s", n, s.log)
		}
	})
}

func TestADiskThatCannotBeWrittenToIsOneError(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.disk.set(func(d *faultyStore) { d.full = true })
		s.net.enforced("example.com", 30*day)
		s.mustHold(t, "example.com")
		settle(10 * time.Minute)
		if n := strings.Count(s.log.String(), "cannot write to the cache"); n != 1 || !s.Stats().Failing {
			t.Errorf("%d lines\n%s", n, s.log)
		}
		s.disk.set(func(d *faultyStore) { d.full = false })
		settle(2 * commitRetryMax)
		if s.Stats().Failing {
			t.Error("it does not recover")
		}
	})
}

func TestALookupSaysWhenItBeganUnlessMemoryHasTheAnswer(t *testing.T) {
	inSite(t, nil, func(t *testing.T, s *site) {
		s.net.enforced("example.com", 30*day)
		timed := 0
		for range 10 {
			var h Held
			if err := s.Lookup(t.Context(), []byte("example.com"), &h); err != nil {
				t.Fatal(err)
			}
			if !h.Since.IsZero() {
				timed++
			}
		}
		if timed == 0 || timed > 3 { // the discovery, and until it is in the table
			t.Errorf("%d of 10 lookups were timed", timed)
		}
	})
}
