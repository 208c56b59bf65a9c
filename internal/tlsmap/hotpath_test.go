package tlsmap_test

import (
	"context"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

func TestARepeatedLookupAllocatesNothing(t *testing.T) {
	l := newLab(t, 0)
	l.policies.mute = true
	l.SetExempt([]string{"exempt.example", ".exempt.example"})
	room := make([]byte, 0, 4096)
	for _, mapName := range []string{"postfix", "postfix-tlsrpt", "strict"} {
		for _, key := range []string{
			"enforce.example", "[enforce.example]:25", "Enforce.Example", "stored.example", "testing.example", "unknown.example",
			".example", "localhost", "a.exempt.example", "unreadable.example",
		} {
			if mapName == "postfix-tlsrpt" && key == "stored.example" {
				continue // its attributes are rendered from the policy's text
			}
			m, k := []byte(mapName), []byte(key)
			n := testing.AllocsPerRun(200, func() { l.AppendReply(context.Background(), room, m, k) })
			if n != 0 {
				t.Errorf("map %s, key %s: %v allocations", mapName, key, n)
			}
		}
	}
	// Without this call nothing of TLS reports runs in a lookup: no lock, no system call.
	if l.failed != nil {
		t.Errorf("TLS reports are told of %q", l.failed)
	}
}

// BenchmarkAppendReply measures a lookup but for the keeper, whose part is
// played by one look into a Go map.
func BenchmarkAppendReply(b *testing.B) {
	for _, bench := range []struct{ name, mapName, key string }{
		{"kept", "postfix", "enforce.example"},
		{"kept-tlsrpt", "postfix-tlsrpt", "enforce.example"},
		{"rendered", "postfix", "stored.example"},
		{"rendered-tlsrpt", "postfix-tlsrpt", "stored.example"},
		{"no-policy", "postfix", "unknown.example"},
		{"parent", "postfix", ".example"},
		{"dane", "postfix-dane", "dane.example"},
		{"dane-absent", "postfix-dane", "enforce.example"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			l := newLab(b, 0)
			l.policies.mute = true
			m, k := []byte(bench.mapName), []byte(bench.key)
			ctx := context.Background()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for room := make([]byte, 0, 4096); pb.Next(); {
					l.AppendReply(ctx, room, m, k)
				}
			})
		})
	}
	b.Run("keeper-alone", func(b *testing.B) {
		f := newFake()
		f.mute = true
		var h keeper.Held
		k := []byte("enforce.example")
		for b.Loop() {
			if err := tlsmap.Policies(f).Lookup(context.Background(), k, &h); err != nil {
				b.Fatal(err)
			}
		}
	})
}
