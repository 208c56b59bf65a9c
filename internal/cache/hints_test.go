package cache

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hinted says whether a lookup of domain would be answered by a hint.
func hinted(s *Store, domain string) bool {
	v, _ := s.recall(s.snap.Load(), []byte(domain), nil)
	return v != nil
}

// find returns the place of a domain's hint.
func (h *hints) find(domain []byte) (place uint64, found bool) {
	slot, hint := h.slot(domain)
	return hint & placeMask, slot != nil
}

// version is a record that tells by its times which one it is.
func version(domain string, n int) *Record {
	r := record(domain)
	r.Fetched = noon.Add(time.Duration(n) * time.Second)
	return r
}

func lookedUp(t *testing.T, s *Store, domain string) (version int, err error) {
	t.Helper()
	var hit Hit
	err = s.Lookup([]byte(domain), &hit)
	return int(hit.Fetched - noon.Unix()), err
}

// openFilled opens a store with so many policies that they are not kept on one
// page with everything else.
func openFilled(t *testing.T) *Store {
	t.Helper()
	s := withoutSync(openNew(t))
	var ops []Op
	for i := range 500 {
		ops = append(ops, Op{Put: version(fmt.Sprintf("d%03d.example", i), i)})
	}
	mustWrite(t, s, ops...)
	return s
}

func TestAHintLeadsPastThePages(t *testing.T) {
	s := openFilled(t)
	sn := s.snap.Load()
	if _, err := lookedUp(t, s, "d123.example"); err != nil {
		t.Fatal(err)
	}
	root := sn.policy.root
	sn.policy.root = sn.policy.limit // to go through the pages is an error now
	got, err := lookedUp(t, s, "d123.example")
	sn.policy.root = root
	if got != 123 || err != nil {
		t.Errorf("by the hint: %d, %v", got, err)
	}
}

// Many small transactions make bbolt write on the pages that hints point to.
func TestLookupsByHintsFindWhatIsStoredNow(t *testing.T) {
	s := withoutSync(openNew(t))
	rnd := rand.New(rand.NewPCG(4, 2))
	stored := make(map[string]int)
	name := func() string { return fmt.Sprintf("d%03d.example", rnd.IntN(400)) }
	byHint := 0
	for round := range 3000 {
		var ops []Op
		for range 1 + rnd.IntN(4) {
			if d := name(); rnd.IntN(4) == 0 {
				ops = append(ops, Op{Delete: d})
				delete(stored, d)
			} else {
				r := version(d, round)
				r.Text = append(r.Text, bytes.Repeat([]byte{'#'}, rnd.IntN(600))...)
				ops = append(ops, Op{Put: r})
				stored[d] = round
			}
		}
		mustWrite(t, s, ops...)
		if round == 1500 {
			s.rebuild(errors.New("a test"))
			withoutSync(s)
		}
		for range 12 {
			d := name()
			if hinted(s, d) {
				byHint++
			}
			got, err := lookedUp(t, s, d)
			if want, there := stored[d]; there && (err != nil || got != want) || !there && err != ErrNotFound {
				t.Fatalf("round %d: %s: version %d, %v; want %d, %v", round, d, got, err, want, there)
			}
		}
	}
	if byHint < 3000 {
		t.Errorf("only %d lookups by hints", byHint)
	}
	checkStore(t, s)
}

// A lookup that begins when a change is stored finds it, or a later one, while
// others learn places and the file is rebuilt.
func TestALookupNeverFindsWhatWasReplacedBeforeItBegan(t *testing.T) {
	s := withoutSync(openNew(t))
	const domains, rounds = 40, 400
	var newest [domains]atomic.Int64
	name := func(i int) string { return fmt.Sprintf("d%02d.example", i) }
	var all []Op
	for i := range domains {
		all = append(all, Op{Put: version(name(i), 0)})
	}
	mustWrite(t, s, all...)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for reader := range 3 {
		readers.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(reader)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				i := rnd.IntN(domains)
				least := newest[i].Load()
				if got, err := lookedUp(t, s, name(i)); err != nil || int64(got) < least {
					t.Errorf("%s: version %d, %v; %d was stored", name(i), got, err, least)
					return
				}
			}
		})
	}
	rnd := rand.New(rand.NewPCG(7, 7))
	for round := 1; round <= rounds; round++ {
		var ops []Op
		changed := rnd.Perm(domains)[:3]
		for _, i := range changed {
			ops = append(ops, Op{Put: version(name(i), round)})
		}
		mustWrite(t, s, ops...)
		for _, i := range changed {
			newest[i].Store(int64(round))
		}
		if round%150 == 0 {
			s.rebuild(errors.New("a test"))
			withoutSync(s)
		}
	}
	close(stop)
	readers.Wait()
}

func TestHintsDoNotOutliveATransactionThatNobodyPublished(t *testing.T) {
	s := openFilled(t)
	mustWrite(t, s, puts(version("a.example", 1), version("b.example", 1))...)
	if _, err := lookedUp(t, s, "a.example"); err != nil || !hinted(s, "a.example") {
		t.Fatalf("%v; the hint is not there", err)
	}
	// As when the new state could not be opened.
	p := newPlan(s.snap.Load(), s.options)
	if err := p.addAll(puts(version("a.example", 2))); err != nil {
		t.Fatal(err)
	}
	if err := s.file.update(p.apply); err != nil {
		t.Fatal(err)
	}
	if _, err := lookedUp(t, s, "a.example"); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, puts(version("b.example", 2))...)
	if got, err := lookedUp(t, s, "a.example"); got != 2 || err != nil {
		t.Errorf("version %d, %v", got, err)
	}
}

func TestAPlanDropsItsHintsBeforeItIsCarriedOut(t *testing.T) {
	s := openFilled(t)
	mustWrite(t, s, puts(version("a.example", 1), version("b.example", 1), version("c.example", 1))...)
	for _, d := range []string{"a.example", "b.example", "c.example"} {
		if _, err := lookedUp(t, s, d); err != nil {
			t.Fatal(err)
		}
	}
	p := newPlan(s.snap.Load(), s.options)
	if err := p.addAll([]Op{{Put: version("a.example", 2)}, {Delete: "b.example"}}); err != nil {
		t.Fatal(err)
	}
	p.dropHints()
	if hinted(s, "a.example") || hinted(s, "b.example") || !hinted(s, "c.example") {
		t.Errorf("a: %v, b: %v, c: %v", hinted(s, "a.example"), hinted(s, "b.example"), hinted(s, "c.example"))
	}
}

func TestOnlyTheCurrentStateIsLearned(t *testing.T) {
	s := openFilled(t)
	mustWrite(t, s, puts(version("a.example", 1), version("b.example", 1))...)
	old := s.current()
	defer old.release()
	mustWrite(t, s, puts(version("a.example", 2))...)
	if _, err := s.descend(old, []byte("a.example")); err != nil {
		t.Fatal(err)
	}
	if hinted(s, "a.example") {
		t.Error("a place in an old state was learned")
	}
	if got, err := lookedUp(t, s, "a.example"); got != 2 || err != nil || !hinted(s, "a.example") {
		t.Errorf("version %d, %v", got, err)
	}
}

func TestADamagedRecordIsDamagedBehindItsHintToo(t *testing.T) {
	s := openFilled(t)
	mustWrite(t, s, puts(record("a.example"), record("b.example"))...)
	if _, err := lookedUp(t, s, "a.example"); err != nil || !hinted(s, "a.example") {
		t.Fatalf("%v; the hint is not there", err)
	}
	spoil(t, s, "a.example")
	var damaged *DamagedError
	if _, err := lookedUp(t, s, "a.example"); !errors.As(err, &damaged) {
		t.Errorf("%v", err)
	}
}

func TestWhatIsTooLargeToCopyHasNoHint(t *testing.T) {
	s := openFilled(t)
	large, small := record("large.example"), record("small.example")
	large.Text = append(large.Text, bytes.Repeat([]byte("#"), maxHinted)...)
	mustWrite(t, s, puts(large, small)...)
	mustHold(t, s, large)
	mustHold(t, s, small)
	var hit Hit
	for range 2 {
		for _, d := range []string{"large.example", "small.example"} {
			if err := s.Lookup([]byte(d), &hit); err != nil || cap(hit.copied) > 2*maxHinted {
				t.Errorf("%s: %v, a buffer of %d bytes", d, err, cap(hit.copied))
			}
		}
	}
	if hinted(s, "large.example") || !hinted(s, "small.example") {
		t.Errorf("hints: %v for the large one, %v for the small one", hinted(s, "large.example"), hinted(s, "small.example"))
	}
}

func TestHintsGrowWithThePolicies(t *testing.T) {
	s := withoutSync(openNew(t))
	before := s.snap.Load().hints
	var ops []Op
	for i := range 10 * minHints {
		ops = append(ops, Op{Put: record(fmt.Sprintf("d%d.example", i))})
	}
	mustWrite(t, s, ops...)
	after := s.snap.Load().hints
	if before == after || len(after.buckets)*hintsPerBucket < len(ops) {
		t.Errorf("%d buckets for %d policies", len(after.buckets), len(ops))
	}
	mustWrite(t, s, puts(record("one.example"))...)
	if s.snap.Load().hints != after {
		t.Error("one policy more made another table")
	}
}

func TestHintsAreBoundedAndDropped(t *testing.T) {
	for _, policies := range []int64{0, 40_000, math.MaxInt64} {
		h := newHints(policies)
		if n := int64(len(h.buckets)) * hintsPerBucket; n < minHints || n > maxHints+hintsPerBucket || !h.fits(policies) {
			t.Errorf("%d hints for %d policies", n, policies)
		}
		const n = 20_000
		domain := func(i int) []byte { return fmt.Appendf(nil, "d%d.example", i) }
		for i := range n {
			h.put(domain(i), uint64(1000+i))
			if got, found := h.find(domain(i)); !found || got != uint64(1000+i) {
				t.Fatalf("%d of %d policies: %d, %v", i, policies, got, found)
			}
		}
		h.put(domain(n-1), 5) // in the place of the other
		for i := range n {
			h.drop(domain(i))
			if got, found := h.find(domain(i)); found {
				t.Fatalf("%d of %d policies was dropped: %d", i, policies, got)
			}
		}
		h.put(domain(1), 1<<placeBits)
		if got, found := h.find(domain(1)); found {
			t.Errorf("a place that has no room: %d", got)
		}
	}
}

// What a transaction writes is not stored before its meta page is, and no
// lookup may find it until then: a crash would take it back.
func TestNoLookupGoesBackToAnOlderVersion(t *testing.T) {
	s := openNew(t) // with sync: between a page and the meta page there is time
	var all []Op
	for i := range 500 {
		all = append(all, Op{Put: version(fmt.Sprintf("d%03d.example", i), i)})
	}
	mustWrite(t, s, all...)
	var stop atomic.Bool
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for last := -1; !stop.Load(); {
				got, err := lookedUp(t, s, "d123.example")
				if err != nil || got < last {
					t.Errorf("version %d, %v; %d was found before", got, err, last)
					return
				}
				last = got
			}
		})
	}
	for n, begun := 1000, time.Now(); time.Since(begun) < 3*time.Second; n++ {
		mustWrite(t, s, puts(version("d123.example", n))...)
		mustWrite(t, s, puts(version("d124.example", n))...) // its leaf moves: the hint's page is free
		mustWrite(t, s, puts(version("d300.example", n))...)
	}
	stop.Store(true)
	readers.Wait()
}

func TestAFreePageThatCannotBeReadHindersNoLookup(t *testing.T) {
	s := openFilled(t)
	if _, err := lookedUp(t, s, "d123.example"); err != nil || !hinted(s, "d123.example") {
		t.Fatalf("%v; the hint is not there", err)
	}
	place, _ := s.snap.Load().hints.find([]byte("d123.example"))
	mustWrite(t, s, puts(version("d124.example", 7000))...) // copies the leaf
	sn := s.snap.Load()
	at := place / sn.policy.size * sn.policy.size
	if err := unix.Mprotect(sn.policy.data[at:at+sn.policy.size], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	if got, err := lookedUp(t, s, "d123.example"); got != 123 || err != nil {
		t.Errorf("version %d, %v", got, err)
	}
}

func TestHintsDoNotOutliveAnUnpublishedTransactionBeforeAFailedOne(t *testing.T) {
	s := openFilled(t)
	mustWrite(t, s, puts(version("a.example", 1))...)
	p := newPlan(s.snap.Load(), s.options)
	if err := p.addAll(puts(version("a.example", 2))); err != nil {
		t.Fatal(err)
	}
	p.dropHints()
	if err := s.file.update(p.apply); err != nil { // and as if the new state could not be opened
		t.Fatal(err)
	}
	if _, err := lookedUp(t, s, "a.example"); err != nil {
		t.Fatal(err)
	}
	s.file.db.MaxSize = 1
	large := record("large.example")
	large.Text = bytes.Repeat([]byte("#"), 400_000)
	if _, err := s.Write(puts(large)); err == nil {
		t.Fatal("there was room")
	}
	if got, err := lookedUp(t, s, "a.example"); got != 2 || err != nil {
		t.Errorf("version %d, %v", got, err)
	}
}

func TestABucketInTheValuesPlaceIsDamage(t *testing.T) {
	s := openFilled(t)
	sn := s.snap.Load()
	leaf, i, err := sn.policy.locate([]byte("d123.example"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{flagBucket}, int64(sn.policy.size*leaf.id())+pageHeader+int64(i)*elementSize); err != nil {
		t.Fatal(err)
	}
	if _, err := lookedUp(t, s, "d123.example"); !errors.Is(err, ErrUnreadable) {
		t.Errorf("%v", err)
	}
	awaitRebuild(t, s)
}
