package testlab_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

func TestAwaitGivesUpWhenItsContextOrTheLabEnds(t *testing.T) {
	l, err := testlab.Start(testlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	never := func() bool { return false }
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("enough")
	cancel(why)
	if err := l.Await(ctx, never); !errors.Is(err, why) {
		t.Errorf("with its context ended: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Await(bounded(t), never); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with the lab closed: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func TestAddressesAreHandedOutOnceAndRunOut(t *testing.T) {
	l := testlab.NewWith(t, testlab.Options{Net: netip.MustParsePrefix("127.1.2.0/30")})
	for _, want := range []string{"127.1.2.1", "127.1.2.2", "127.1.2.3"} {
		if a, err := l.NextAddr(); err != nil || a.String() != want {
			t.Errorf("got %v, %v; want %s", a, err, want)
		}
	}
	if a, err := l.NextAddr(); err == nil {
		t.Errorf("got %v, out of the network", a)
	}
}

func TestAPortThatIsTakenIsAnError(t *testing.T) {
	l := testlab.New(t)
	if other, err := testlab.Start(testlab.Options{DNS: l.DNS.Addr}); err == nil {
		other.Close()
		t.Error("two resolvers started on one port")
	}
}
