package keeper

import (
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

var testSeed = maphash.MakeSeed()

func testEntry(domain string, ready int) *Entry {
	return &Entry{Domain: domain, Ready: make([]byte, ready), hash: maphash.String(testSeed, domain)}
}

func (t *table) has(domain string) bool {
	e, _ := t.get(maphash.String(testSeed, domain), []byte(domain))
	return e != nil
}

// putNew puts an entry that nothing has come before.
func (t *table) putNew(e *Entry) {
	_, generation := t.get(e.hash, []byte(e.Domain))
	t.put(e, generation)
}

func TestTheTableStaysWithinItsBytesKeptRepliesIncluded(t *testing.T) {
	tab := newTable(tableShards * 20 << 10)
	for i := range 20000 {
		e := testEntry(fmt.Sprintf("d%d.example", i), 200)
		tab.putNew(e)
		e.KeepReply(0, make([]byte, 300))
		e.KeepReply(0, make([]byte, 300)) // kept once
	}
	var held []*Entry
	for i := range tab.shards {
		for el := tab.shards[i].queue.Front(); el != nil; el = el.Next() {
			held = append(held, el.Value.(*Entry))
		}
	}
	for _, e := range held { // a reply may also come long after the entry
		e.KeepReply(2, make([]byte, 900))
	}
	entries, bytes := tab.size()
	if most := int64(tableShards * 20 << 10); bytes > most || bytes < most/2 {
		t.Errorf("%d bytes, want at most %d", bytes, most)
	}
	if entries < 100 {
		t.Errorf("only %d entries", entries)
	}
	for i := range 20000 {
		d := fmt.Sprintf("d%d.example", i)
		tab.replace(maphash.String(testSeed, d), d, nil)
	}
	if entries, bytes := tab.size(); entries != 0 || bytes != 0 {
		t.Errorf("emptied, it has %d entries and %d bytes", entries, bytes)
	}
}

func TestAnEntryThatIsAskedForStays(t *testing.T) {
	tab := newTable(tableShards * 20 << 10)
	e := testEntry("kept.example", 100)
	tab.putNew(e)
	for i := range 20000 {
		o := testEntry(fmt.Sprintf("d%d.example", i), 200)
		tab.putNew(o)
		if !tab.has("kept.example") {
			t.Fatalf("gone after %d others", i)
		}
	}
}

func TestAnEntryMadeFromAnOlderStateIsRefused(t *testing.T) {
	tab := newTable(1 << 20)
	e := testEntry("a.example", 10)
	_, generation := tab.get(e.hash, []byte(e.Domain))
	tab.replace(e.hash, "a.example", nil) // forgotten in between
	tab.put(e, generation)
	if tab.has("a.example") {
		t.Error("the older entry was taken")
	}
}

func TestARepliesBytesAreCountedOnceUnderContention(t *testing.T) {
	tab := newTable(1 << 20)
	var wg sync.WaitGroup
	for i := range 200 {
		e := testEntry("a.example", 10)
		tab.keep(e)
		for slot := range 4 {
			wg.Go(func() { e.KeepReply(slot, make([]byte, i)) })
		}
	}
	wg.Wait()
	tab.replace(maphash.String(testSeed, "a.example"), "a.example", nil)
	if entries, bytes := tab.size(); entries != 0 || bytes != 0 {
		t.Errorf("emptied, it has %d entries and %d bytes", entries, bytes)
	}
}

func TestTheDoorkeeperKnowsTheSecondUseAndForgets(t *testing.T) {
	var d doorkeeper
	h := func(i int) uint64 { return maphash.String(testSeed, fmt.Sprint(i)) }
	if d.seen(h(0)) || !d.seen(h(0)) {
		t.Error("the second use was not told from the first")
	}
	for i := range 3 * doorkeeperUses {
		d.seen(h(i + 1))
	}
	again := 0
	for i := range 1000 {
		if d.seen(h(i + 1)) {
			again++
		}
	}
	if again > 300 {
		t.Errorf("%d of 1000 first uses were not forgotten", again)
	}
}

func TestAUseIsRememberedForOneToTwoPeriods(t *testing.T) {
	u := newUsedMap()
	now := time.Now()
	hash := maphash.String(testSeed, "example.com")
	if u.lately(hash) {
		t.Error("used before it was")
	}
	u.mark(hash)
	u.rotate(now.Add(usedPeriod / 2))
	u.rotate(now.Add(usedPeriod + time.Second))
	if !u.lately(hash) {
		t.Error("forgotten after one period")
	}
	u.rotate(now.Add(2*usedPeriod + 2*time.Second))
	if u.lately(hash) {
		t.Error("remembered after two periods")
	}
}

func TestARecheckIsClaimedOnceInAWhile(t *testing.T) {
	r := newRecency()
	hash := maphash.String(testSeed, "example.com")
	if !r.claim(hash, 1000, 300) || r.claim(hash, 1000, 300) || r.claim(hash, 1299, 300) {
		t.Error("claimed twice within the time")
	}
	if !r.claim(hash, 1300, 300) {
		t.Error("not claimed after it")
	}
}

// Domains whose hashes lead to the same slots must not make each other be
// looked at with every lookup.
func TestDomainsThatShareSlotsAreRecheckedOnceInAWhileToo(t *testing.T) {
	const sharers = recheckWays + 2 // more than there is room for
	r := newRecency()
	claims := make([]int, sharers)
	for now := int64(1_000_000); now < 1_003_000; now++ {
		for i := range claims {
			if r.claim(uint64(i+1)<<32|7<<8, now, 300) {
				claims[i]++
			}
		}
	}
	total := 0
	for i, n := range claims {
		if total += n; n > 10 {
			t.Errorf("domain %d: %d times in ten times the while", i, n)
		}
	}
	if total != 10*recheckWays {
		t.Errorf("%d claims in all", total)
	}
}

func TestNegativeResultsStayWithinTheirBytes(t *testing.T) {
	n := newNegatives()
	until := time.Now().Add(time.Hour)
	held := func() (bytes int64) {
		for _, v := range n.byHash.Values() {
			bytes += v.size()
		}
		return bytes
	}
	for i := range uint64(2 * maxNegative) {
		d := fmt.Sprintf("%06d.%s.example", i, strings.Repeat("a", 230))
		n.put(i, &Negative{Domain: d, Err: strings.Repeat("x", policy.MaxReason), Until: until})
		n.put(i, &Negative{Domain: d, Until: until})
		if i%3 == 0 {
			n.drop(i)
		}
	}
	if got := held(); n.bytes != got || got > maxNegativeBytes || got < maxNegativeBytes/2 {
		t.Errorf("%d bytes are counted, %d are held", n.bytes, got)
	}
}
