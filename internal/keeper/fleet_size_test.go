package keeper

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// A fleetLoad is what one policy in use at all relays costs in a day.
type fleetLoad struct{ fetches, looks float64 } // looks: of each relay at the engine

// modelFleet draws the moments of a policy at so many relays, by the keeper's own rule. A
// relay whose moment has come takes the newer policy of another one, or fetches.
func modelFleet(relays, days int, maxAge time.Duration) fleetLoad {
	const compareOneIn = 50 // as in package fleet, times the relays
	begun := time.Unix(0, 0)
	records := make([]cache.Record, relays)
	take := func(r *cache.Record, fetched time.Time) {
		r.Fetched, r.Expires = fetched, fetched.Add(maxAge)
		draw(r)
	}
	for i := range records {
		take(&records[i], begun)
	}
	newest, fetches, looks := begun, 0, 0
	warm, end := begun.Add(10*oneDay), begun.Add(10*oneDay+time.Duration(days)*oneDay)
	for {
		next := &records[0]
		for i := range records {
			if records[i].FetchAt.Before(next.FetchAt) {
				next = &records[i]
			}
		}
		now := next.FetchAt
		if now.After(end) {
			break
		}
		adopts, fetched := next.Fetched.Before(newest), 0
		if !adopts || rand.IntN(compareOneIn*relays) == 0 {
			fetched, newest = 1, now
		}
		take(next, newest)
		if now.After(warm) {
			fetches, looks = fetches+fetched, looks+1
		}
	}
	return fleetLoad{float64(fetches) / float64(days), float64(looks) / float64(days*relays)}
}

// The table of docs/fleet.md, Size, and what it says of 500 relays.
func TestManyRelaysFetchAPolicyLittleMoreOftenThanOne(t *testing.T) {
	page, err := os.ReadFile("../../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	for relays, want := range map[int]fleetLoad{1: {1.2, 1.2}, 20: {1.4, 1.4}, 500: {1.4, 1.4}} {
		got := modelFleet(relays, max(10000/relays, 100), 7*oneDay)
		t.Logf("%d relays: %.3f fetches a policy and day, each relay looks %.3f times", relays, got.fetches, got.looks)
		if math.Abs(got.fetches-want.fetches) > 0.1 || math.Abs(got.looks-want.looks) > 0.1 {
			t.Errorf("%d relays: %.2f, the page says %.1f", relays, got, want)
		}
		if row := fmt.Sprintf("| %d | %.1f | %.1f |", relays, want.fetches, want.looks); !strings.Contains(string(page), row) {
			t.Errorf("docs/fleet.md does not have %s", row)
		}
	}
}
