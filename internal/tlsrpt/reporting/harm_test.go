package reporting

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// failing is a destination with sessions on days, the newest first: those that failed, by
// harm, and all.
func failing(name string, days ...[4]uint64) Failing {
	f := Failing{Domain: name}
	for i, n := range days {
		f.ByDay[i] = Sessions{Failed: [len(Harms)]uint64(n[:3]), All: n[3]}
		f.add(f.ByDay[i])
	}
	return f
}

func TestDestinationsAreSortedByHarm(t *testing.T) {
	sorted := []Failing{
		failing("most under an enforced policy", [4]uint64{9, 0, 0, 99}),
		failing("fewer on two days, and others", [4]uint64{4, 0, 0, 4}, [4]uint64{4, 9, 9, 99}),
		failing("one yesterday, and many without a policy", [4]uint64{}, [4]uint64{1, 0, 9999, 99999}),
		failing("under a policy that does not bind", [4]uint64{0, 8, 0, 8}),
		failing("many without a policy", [4]uint64{0, 0, 9999, 9999}),
		failing("one without a policy", [4]uint64{0, 0, 1, 9999}),
		failing("one without a policy, the later name", [4]uint64{0, 0, 1, 1}),
		failing("most of all, but before yesterday", [4]uint64{0, 0, 0, 5}, [4]uint64{}, [4]uint64{99, 0, 0, 99}),
	}
	for range 20 {
		got := slices.Clone(sorted)
		rand.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		slices.SortFunc(got, byHarm)
		for i := range got {
			if got[i].Domain != sorted[i].Domain {
				t.Fatalf("place %d has %q; want %q", i, got[i].Domain, sorted[i].Domain)
			}
		}
	}
}

func TestTheHarmOfFailedSessionsIsThatOfTheirPolicy(t *testing.T) {
	details := func(results ...tlsrpt.ResultType) (list []tlsrpt.Detail) {
		for _, r := range results {
			list = append(list, tlsrpt.Detail{Failure: tlsrpt.Failure{Result: r}})
		}
		return list
	}
	for _, c := range []struct {
		kind    tlsrpt.PolicyType
		strings []string
		details []tlsrpt.Detail
		want    string
	}{
		{tlsrpt.TypeTLSA, nil, details(tlsrpt.TLSAInvalid), "enforced"},
		{tlsrpt.TypeSTS, []string{"mode: enforce"}, details(tlsrpt.CertificateExpired), "enforced"},
		{tlsrpt.TypeSTS, nil, details(tlsrpt.CertificateExpired), "enforced"}, // not told
		{tlsrpt.TypeSTS, nil, nil, "enforced"},
		{tlsrpt.TypeSTS, []string{"mode: testing"}, details(tlsrpt.CertificateExpired), "not enforced"},
		{tlsrpt.TypeSTS, nil, details(tlsrpt.STSPolicyFetchError), "not enforced"},
		{tlsrpt.TypeSTS, nil, details(tlsrpt.STSWebPKIInvalid, tlsrpt.STSPolicyInvalid), "not enforced"},
		{tlsrpt.TypeNone, nil, details(tlsrpt.StartTLSNotSupported), "none"},
	} {
		if got := Harms[harm(&tlsrpt.Summary{Policy: tlsrpt.Policy{Type: c.kind, Strings: c.strings}, Details: c.details})]; got != c.want {
			t.Errorf("%s %q %v: %s; want %s", c.kind, c.strings, c.details, got, c.want)
		}
	}
}

func TestADestinationIsNewIfItFailsNowAndDidNotBeforeYesterday(t *testing.T) {
	var (
		good, none, noise = [4]uint64{0, 0, 0, 100}, [4]uint64{}, [4]uint64{2, 0, 0, 10}
		some, most        = [4]uint64{11, 0, 0, 100}, [4]uint64{0, 0, 50, 60}
	)
	for i, c := range []struct {
		days [][4]uint64
		want bool
	}{
		{[][4]uint64{some, good, good}, true},
		{[][4]uint64{most, good}, true},
		{[][4]uint64{most}, true},                                // the first of today succeeded
		{[][4]uint64{some, most, good, noise, good}, true},       // since yesterday
		{[][4]uint64{none, some, good}, true},                    // no mail today yet
		{[][4]uint64{good, most, good}, false},                   // mended
		{[][4]uint64{some, good, some, good}, false},             // not new
		{[][4]uint64{some, good, none, none, none, some}, false}, // not new
		{[][4]uint64{none, none, some, good}, false},             // no mail
		{[][4]uint64{{9, 0, 0, 9}}, false},                       // never succeeded
		{[][4]uint64{noise, good}, false},                        // too few
		{[][4]uint64{{10, 0, 0, 100}, good}, false},              // a tenth
	} {
		if f := failing("x", c.days...); f.begun() != c.want {
			t.Errorf("%d: %v is new: %v", i, c.days, !c.want)
		}
	}
}
