package store_test

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

func TestEachDomainComesOnceWithAllItsDays(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"), success("z.test"), failed("b.test", expired("b.test")),
		tlsrpt.Event{Domain: "b.test", Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: "b.test"}})
	l.clock.set("2026-12-01 12:00")
	l.write(success("a.test"), success("a.test"), success("a.test.x.test"), failed("b.test", expired("b.test")))
	l.merge()
	var got []string
	until := ""
	each := func(domain string, byDay [][]tlsrpt.Summary) bool {
		line := domain
		for _, sums := range byDay {
			slices.SortFunc(sums, func(a, b tlsrpt.Summary) int { return cmp.Compare(b.Failed, a.Failed) })
			line += " |"
			for _, s := range sums {
				line += fmt.Sprintf(" %d of %d %s%v", s.Failed, s.Failed+s.Successful, s.Policy.Type, s.Policy.Strings)
			}
		}
		got = append(got, line)
		return domain != until
	}
	want := []string{
		"a.test | 0 of 2 [] | 0 of 1 [] |",
		"a.test.x.test | 0 of 1 [] | |",
		"b.test | 1 of 1 sts[mode: enforce] | 1 of 1 sts[mode: enforce] 0 of 1 [] |",
		"z.test | | 0 of 1 [] |",
	}
	if whole, err := l.EachDomain([]tlsrpt.Day{next, day, "1999-01-01"}, "", each); !whole || err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, %v", got, whole, err)
	}
	got, until = nil, "b.test"
	if whole, err := l.EachDomain([]tlsrpt.Day{next, day, "1999-01-01"}, "a.test", each); whole || err != nil || !slices.Equal(got, want[1:3]) {
		t.Errorf("behind a.test: %q, %v, %v", got, whole, err)
	}
}

func TestABriefLoadHasTheModeAloneOfTheTextOfPolicies(t *testing.T) {
	l := newLab(t, store.Options{})
	refused := tlsrpt.Failure{Result: tlsrpt.StartTLSNotSupported, Reason: strings.Repeat("x", 200)}
	l.write(success("a.test"), failed("a.test", expired("a.test"), refused))
	l.merge()
	want := l.load(day, "a.test").Policies
	want[0].Policy.Strings, want[0].Policy.MXHosts = []string{"mode: enforce"}, nil
	if got, err := l.Brief(day, "a.test", 2); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, err := l.Brief(day, "a.test", 1); err != nil || len(got) != 1 || len(got[0].Details) != 1 || got[0].Failed != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

func BenchmarkEachDomain(b *testing.B) {
	l := newLab(b, store.Options{})
	const domains = 100_000
	var events []tlsrpt.Event
	for i := range domains {
		if events = append(events, success(numbered(i))); i%10 == 0 {
			events = append(events, failed(numbered(i), expired(numbered(i))))
		}
	}
	l.write(events...)
	l.merge()
	for b.Loop() {
		if whole, err := l.EachDomain([]tlsrpt.Day{day}, "", func(string, [][]tlsrpt.Summary) bool { return true }); !whole || err != nil {
			b.Fatal(whole, err)
		}
	}
}
