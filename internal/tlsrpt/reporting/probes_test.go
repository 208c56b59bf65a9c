package reporting_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// A field is the domains to which mail may have gone, and what probes see of their hosts.
// It has no network: it is the daemon's keeper, DNS and prober.
type field struct {
	config *config.TLSRPT
	modes  map[string]string                                          // of policies, by domain; absent: no policy is held
	mx     map[string][]string                                        // absent: mx.DOMAIN
	list   map[string]string                                          // the policy's pattern; absent: *.DOMAIN
	silent map[string]bool                                            // domains without a TLSRPT record
	see    func(host string) *tlsrpt.Failure                          // nil: all is well
	seeCtx func(ctx context.Context, host string) (_ *tlsrpt.Failure) // first, if there
	roots  error
	dead   bool

	mu     sync.Mutex
	probed []string
}

func newField(t *testing.T) *field {
	f := &field{config: settings(t), modes: map[string]string{}, mx: map[string][]string{}, list: map[string]string{}, silent: map[string]bool{}}
	f.config.Submit = "smtp:127.0.0.1:1" // refused: no report is delivered
	f.config.Organization, f.config.Contact, f.config.Sender = "Example", "tls@example.test", "tls@example.test"
	return f
}

func (f *field) Query(_ context.Context, name string, _ resolver.Type) (*resolver.Answer, error) {
	domain, ok := strings.CutPrefix(name, "_smtp._tls.")
	if !ok || f.silent[domain] {
		return &resolver.Answer{}, nil
	}
	return &resolver.Answer{Texts: []string{"v=TLSRPTv1; rua=mailto:tls@" + domain}}, nil
}

func (f *field) options() reporting.Options {
	return reporting.Options{
		Config: f.config, Passed: (*net.UDPConn)(nil), Resolver: f, Host: "relay.test",
		Network: policy.Config{Resolver: f, Roots: x509.NewCertPool(), Timeout: time.Minute},
		Policy: func(domain string) ([]byte, bool) {
			mode, ok := f.modes[domain]
			pattern, listed := f.list[domain]
			if !listed {
				pattern = "*." + domain
			}
			return fmt.Appendf(nil, "version: STSv1\nmode: %s\nmx: %s\nmax_age: 604800\n", mode, pattern), ok
		},
		FetchDead: func() bool { return f.dead },
		MX: func(_ context.Context, domain string) (*dane.MXSet, error) {
			names, ok := f.mx[domain]
			if !ok {
				names = []string{"mx." + domain}
			}
			set := &dane.MXSet{}
			for _, name := range names {
				set.Hosts = append(set.Hosts, dane.MXHost{Name: name})
			}
			return set, nil
		},
		Prober: func() (func(context.Context, string) *tlsrpt.Failure, error) {
			return func(ctx context.Context, host string) *tlsrpt.Failure {
				f.mu.Lock()
				f.probed = append(f.probed, host)
				f.mu.Unlock()
				if f.seeCtx != nil {
					return f.seeCtx(ctx, host)
				}
				if f.see != nil {
					if seen := f.see(host); seen == nil || seen.Result != "" {
						return seen
					}
				}
				return &tlsrpt.Failure{}
			}, f.roots
		},
	}
}

// sessions puts sessions of today into the store, as Postfix and Exim tell of them.
func (f *field) sessions(t *testing.T, kind tlsrpt.PolicyType, n int, domains ...string) {
	t.Helper()
	var events []tlsrpt.Event
	for _, domain := range domains {
		for range n {
			e := tlsrpt.Event{Domain: domain, Policy: tlsrpt.Policy{Type: kind, Domain: domain}}
			if kind == tlsrpt.TypeSTS {
				e.Policy.Strings = []string{"version: STSv1", "mode: enforce"}
			}
			events = append(events, e)
		}
	}
	f.events(t, events...)
}

func (f *field) events(t *testing.T, events ...tlsrpt.Event) {
	t.Helper()
	s, err := store.Open(f.config.Path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var b store.Batch
	b.Reset(tlsrpt.DayOf(time.Now()))
	for i := range events {
		b.Add(&events[i])
	}
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // segments of the log are named after the time
}

// play runs the service for a time, and returns which hosts were probed, in the order of
// their names.
func (f *field) play(t *testing.T, long time.Duration) []string {
	t.Helper()
	s, logged, stop := run(t, f.options())
	time.Sleep(long)
	synctest.Wait()
	stop()
	for _, part := range []string{"reports: ", "probes: "} {
		if err := s.Stats().Err; strings.Contains(err.Error(), part) && f.roots == nil { // the socket never works in here
			t.Errorf("%v\n%s", err, logged)
		}
	}
	probed := f.probed
	f.probed = nil
	slices.Sort(probed)
	return probed
}

// testing returns what is counted today under the testing policy of a domain.
func (f *field) testing(t *testing.T, domain string) (sum tlsrpt.Summary) {
	t.Helper()
	for _, p := range stored(t, f.config.Path, domain).Policies {
		if p.Policy.Type == tlsrpt.TypeSTS && len(p.Policy.Strings) > 2 {
			sum = p
		}
	}
	return sum
}

// inField runs a test without a network, in a bubble of synctest.
func inField(t *testing.T, f func(t *testing.T, f *field)) {
	field := newField(t)
	synctest.Test(t, func(t *testing.T) { f(t, field) })
}

var selfSigned = &tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted, MXHost: "mx.bad.test", Reason: "the certificate is self-signed"}

func TestADomainInTestingIsProbedOnceADayWhereMailWentAndARecordAsks(t *testing.T) {
	inField(t, func(t *testing.T, f *field) {
		for _, domain := range []string{"good.test", "bad.test", "silent.test", "quiet.test", "skipped.test", "exim.test"} {
			f.modes[domain] = "testing"
		}
		f.modes["enforced.test"], f.modes["none.test"] = "enforce", "none"
		f.silent["silent.test"] = true
		f.config.Skip = []string{"skipped.test"}
		f.see = func(host string) *tlsrpt.Failure {
			if host == "mx.bad.test" {
				return selfSigned
			}
			return &tlsrpt.Failure{}
		}
		f.sessions(t, tlsrpt.TypeNone, 3, "good.test", "bad.test", "silent.test", "skipped.test", "exim.test", "enforced.test", "none.test", "nothing.test")
		f.sessions(t, tlsrpt.TypeSTS, 1, "exim.test", "enforced.test")
		if got := f.play(t, 3*time.Hour); fmt.Sprint(got) != "[mx.bad.test mx.good.test]" {
			t.Fatalf("probed %q", got)
		}
		good, bad := f.testing(t, "good.test"), f.testing(t, "bad.test")
		if good.Successful != 1 || good.Failed != 0 || len(good.Policy.Strings) != 4 || good.Policy.Strings[1] != "mode: testing" ||
			good.Policy.Domain != "good.test" || fmt.Sprint(good.Policy.MXHosts) != "[*.good.test]" {
			t.Errorf("got %+v", good)
		}
		if bad.Successful != 0 || bad.Failed != 1 || len(bad.Details) != 1 || bad.Details[0].Failure != *selfSigned || bad.Details[0].Sessions != 1 {
			t.Errorf("got %+v", bad)
		}

		f.sessions(t, tlsrpt.TypeNone, 1, "good.test", "bad.test")
		if got := f.play(t, 3*time.Hour); len(got) > 0 {
			t.Errorf("probed again after a restart on the same day: %q", got)
		}
		time.Sleep(24 * time.Hour)
		f.sessions(t, tlsrpt.TypeNone, 1, "good.test")
		if got := f.play(t, 3*time.Hour); fmt.Sprint(got) != "[mx.good.test]" {
			t.Errorf("on the next day: probed %q", got)
		}
	})
}

func TestTheSwitchTurnsProbesOffAndWithoutReportsThereAreNone(t *testing.T) {
	for name, change := range map[string]func(*config.TLSRPT){
		"probe_testing = false": func(c *config.TLSRPT) { c.ProbeTesting = false },
		"collect only":          func(c *config.TLSRPT) { c.Sender = "" },
	} {
		t.Run(name, func(t *testing.T) {
			inField(t, func(t *testing.T, f *field) {
				f.modes["good.test"] = "testing"
				change(f.config)
				f.sessions(t, tlsrpt.TypeNone, 1, "good.test")
				if got := f.play(t, 3*time.Hour); len(got) > 0 {
					t.Errorf("probed %q", got)
				}
			})
		})
	}
}

// The worst mistake would be to tell domains of a fault of ours.
func TestFailuresOfProbesAreCountedOnceASessionUnderAPolicySucceeds(t *testing.T) {
	inField(t, func(t *testing.T, f *field) {
		f.see = func(string) *tlsrpt.Failure { return &tlsrpt.Failure{Result: tlsrpt.StartTLSNotSupported} }
		f.modes["bad.test"], f.modes["worse.test"] = "testing", "testing"
		f.sessions(t, tlsrpt.TypeNone, 1, "bad.test", "worse.test")
		if got := f.play(t, 2*time.Hour); len(got) != 2 {
			t.Fatalf("probed %q", got)
		}
		for _, domain := range []string{"bad.test", "worse.test"} {
			if sum := f.testing(t, domain); sum.Failed > 0 {
				t.Errorf("nothing succeeded, and %s is told of %+v", domain, sum)
			}
		}
		f.sessions(t, tlsrpt.TypeSTS, 1, "enforced.test")
		if got := f.play(t, 2*time.Hour); len(got) != 2 || f.testing(t, "bad.test").Failed != 1 || f.testing(t, "worse.test").Failed != 1 {
			t.Errorf("a session under a policy succeeded: probed %q, %+v", got, f.testing(t, "bad.test"))
		}
	})
}

func TestOurOwnFaultsAreNoResultOfAProbe(t *testing.T) {
	for name, change := range map[string]func(*field){
		"no session":      func(f *field) { f.see = func(string) *tlsrpt.Failure { return nil } },
		"no authorities":  func(f *field) { f.roots = errors.New("no authorities") },
		"fetches all die": func(f *field) { f.dead = true },
	} {
		t.Run(name, func(t *testing.T) {
			inField(t, func(t *testing.T, f *field) {
				f.modes["good.test"] = "testing"
				f.sessions(t, tlsrpt.TypeNone, 1, "good.test")
				f.sessions(t, tlsrpt.TypeSTS, 1, "enforced.test")
				change(f)
				if f.play(t, 2*time.Hour); f.testing(t, "good.test").Policy.Type != "" {
					t.Errorf("got %+v", f.testing(t, "good.test"))
				}
			})
		})
	}
}

func TestRFC8461_4_1_AnUnlistedHostOfADomainInTestingIsAFailureAndIsNotProbed(t *testing.T) {
	inField(t, func(t *testing.T, f *field) {
		f.modes["moved.test"], f.mx["moved.test"] = "testing", []string{"mx.moved.test", "mx.new.test", "a.b.moved.test"}
		f.sessions(t, tlsrpt.TypeNone, 1, "moved.test")
		if got := f.play(t, 2*time.Hour); fmt.Sprint(got) != "[mx.moved.test]" {
			t.Errorf("probed %q", got)
		}
		sum := f.testing(t, "moved.test")
		if sum.Successful != 1 || sum.Failed != 2 || len(sum.Details) != 2 {
			t.Fatalf("got %+v", sum)
		}
		for _, d := range sum.Details {
			if want := (tlsrpt.Failure{Result: tlsrpt.ValidationFailure, MXHost: d.MXHost, Reason: "mx-mismatch"}); d.Failure != want || d.MXHost == "mx.moved.test" {
				t.Errorf("got %+v", d)
			}
		}
	})
}

func TestRFC8460_3_OurReportMailsAreNoReasonForAProbe(t *testing.T) {
	inField(t, func(t *testing.T, f *field) {
		f.modes["peer.test"], f.modes["friend.test"] = "testing", "testing"
		f.sessions(t, tlsrpt.TypeNone, 1, "peer.test") // yesterday, about which we report today
		s, err := store.Open(f.config.Path, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		yesterday := tlsrpt.DayOf(time.Now())
		if err := s.Merge(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Hour)
		for _, domain := range []string{"peer.test", "friend.test"} {
			to := tlsrpt.Receiver{URI: "mailto:tls@" + domain, Kind: tlsrpt.Accepted, Changed: time.Now()}
			if err := s.PutDeliveries(tlsrpt.Delivery{Day: yesterday, Domain: domain, To: []tlsrpt.Receiver{to}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(s.SetStage(yesterday, tlsrpt.StageDone), s.Close()); err != nil {
			t.Fatal(err)
		}
		f.sessions(t, tlsrpt.TypeNone, 1, "peer.test", "friend.test")
		f.sessions(t, tlsrpt.TypeNone, 1, "friend.test") // another mail
		if got := f.play(t, time.Hour); fmt.Sprint(got) != "[mx.friend.test]" {
			t.Errorf("probed %q", got)
		}
	})
}

func TestADomainWhosePolicyCouldNotBeFetchedAtFirstIsProbed(t *testing.T) {
	inField(t, func(t *testing.T, f *field) {
		f.modes["late.test"] = "testing"
		f.sessions(t, tlsrpt.TypeNone, 1, "late.test")
		f.events(t, tlsrpt.Event{Domain: "late.test", Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: "late.test"},
			Failed: true, Failures: []tlsrpt.Failure{{Result: tlsrpt.STSPolicyFetchError}}})
		if got := f.play(t, 2*time.Hour); fmt.Sprint(got) != "[mx.late.test]" || f.testing(t, "late.test").Successful != 1 {
			t.Errorf("probed %q: %+v", got, f.testing(t, "late.test"))
		}
	})
}

func TestAHundredDomainsWithSlowHostsKeepNoOtherFromItsProbe(t *testing.T) {
	inField(t, func(t *testing.T, f *field) {
		domains := []string{"zz.test"}
		for i := range 100 {
			domains = append(domains, fmt.Sprintf("slow%d.test", i))
		}
		for _, domain := range domains {
			f.modes[domain] = "testing"
		}
		f.seeCtx = func(ctx context.Context, host string) *tlsrpt.Failure {
			if host != "mx.zz.test" {
				<-ctx.Done()
				return nil
			}
			return &tlsrpt.Failure{}
		}
		f.sessions(t, tlsrpt.TypeNone, 1, domains...)
		if f.play(t, 30*time.Minute); f.testing(t, "zz.test").Successful != 1 {
			t.Errorf("got %+v", f.testing(t, "zz.test"))
		}
	})
}

func TestADomainWithSlowHostsCostsTwoMinutes(t *testing.T) {
	inField(t, func(t *testing.T, f *field) {
		f.modes["slow.test"] = "testing"
		for i := range 64 {
			f.mx["slow.test"] = append(f.mx["slow.test"], fmt.Sprintf("mx%d.slow.test", i))
		}
		f.seeCtx = func(ctx context.Context, _ string) *tlsrpt.Failure {
			select {
			case <-time.After(50 * time.Second):
			case <-ctx.Done():
			}
			return nil
		}
		f.sessions(t, tlsrpt.TypeNone, 1, "slow.test")
		if got := f.play(t, 2*time.Hour); len(got) != 3 {
			t.Errorf("probed %q", got)
		}
	})
}
