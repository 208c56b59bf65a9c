package store_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

func TestTheWorstDomainsOfADayAreThoseWithMostFailedSessions(t *testing.T) {
	l := newLab(t, store.Options{})
	plain := tlsrpt.Event{Domain: numbered(7), Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: numbered(7)}, Failed: true}
	for i := range 20 {
		for range i % 10 {
			l.write(failed(numbered(i), expired(numbered(i))))
		}
		l.write(success(numbered(i)))
	}
	for range 5 {
		l.write(plain) // the domain's second policy
	}
	l.merge()
	all, worst, _, err := l.Worst(day, 3, 1<<20)
	want := []string{numbered(7), numbered(9), numbered(19)}
	if err != nil || !slices.Equal(worst, want) || all != (store.Total{Domains: 20, Successful: 20, Failed: 95}) {
		t.Errorf("%+v, %q, %v", all, worst, err)
	}
	if all, worst, read, err := l.Worst(day, 3, 300); err != nil || read < 300 || read > 1000 || all.Domains < 2 || all.Domains > 10 || worst[0] != numbered(all.Domains-1) {
		t.Errorf("the beginning: %+v, %q, %d bytes, %v", all, worst, read, err)
	}
	if all, worst, read, err := l.Worst(next, 3, 300); err != nil || read != 0 || all.Domains != 0 || worst != nil {
		t.Errorf("no day: %+v, %q, %d bytes, %v", all, worst, read, err)
	}
}

func TestABriefLoadLeavesOutTheTextOfPolicies(t *testing.T) {
	l := newLab(t, store.Options{})
	refused := tlsrpt.Failure{Result: tlsrpt.StartTLSNotSupported, Reason: strings.Repeat("x", 200)}
	l.write(success("a.test"), failed("a.test", expired("a.test"), refused))
	l.merge()
	want := l.load(day, "a.test").Policies
	want[0].Policy.Strings, want[0].Policy.MXHosts = nil, nil
	if got, err := l.Brief(day, "a.test", 2); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, err := l.Brief(day, "a.test", 1); err != nil || len(got) != 1 || len(got[0].Details) != 1 || got[0].Failed != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

func BenchmarkWorst(b *testing.B) {
	l := newLab(b, store.Options{})
	const domains = 100_000
	var events []tlsrpt.Event
	for i := range domains {
		if events = append(events, failed(numbered(i), expired(numbered(i)))); len(events) == 1000 {
			l.write(events...)
			events = events[:0]
		}
	}
	l.merge()
	for b.Loop() {
		if all, _, _, err := l.Worst(day, 20, 1<<30); err != nil || all.Domains != domains {
			b.Fatal(all, err)
		}
	}
}
