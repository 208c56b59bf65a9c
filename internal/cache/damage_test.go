package cache

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// damagedPolicies is how many policies the files hold that are damaged here:
// enough for branch pages, and some with overflow pages.
const damagedPolicies = 400

func victim(i int) *Record {
	r := record(fmt.Sprintf("d%03d.example", i))
	r.Text = bytes.Repeat([]byte("text "), 20+i%50)
	if i%40 == 0 {
		r.Text = bytes.Repeat([]byte("text "), 2000)
	}
	return r
}

// wholeFile returns the bytes of a file with the victims, written in several
// commits, and the number of one that was deleted.
func wholeFile(t testing.TB) []byte {
	t.Helper()
	s := withoutSync(openNew(t))
	for at := 0; at < damagedPolicies; at += 50 {
		var ops []Op
		for i := at; i < at+50; i++ {
			ops = append(ops, Op{Put: victim(i)})
		}
		mustWrite(t, s, ops...)
	}
	closeStore(t, s)
	b, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A harm is something that happens to a file.
type harm struct {
	name string
	do   func(b []byte) []byte
}

// stillThere counts the victims of which a whole copy is left in the bytes, but
// for those on free pages: that is what can be read, whatever became of the
// pages. Where it cannot be told which are free all count, since all victims
// are enforced.
func stillThere(t testing.TB, harmed []byte) int {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "harmed")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(harmed); err != nil {
		t.Fatal(err)
	}
	b := bytes.Clone(harmed)
	if free, err := freePages(f); err == nil {
		free.blank(b, 0)
	}
	found := map[string]bool{}
	for at := 0; ; {
		i := bytes.Index(b[at:], mark)
		if i < 0 {
			return len(found)
		}
		at += i
		if v, ok := valueAtFront(b[at:]); ok {
			found[string(v.domain())] = true
		}
		at++
	}
}

func harms(b []byte) []harm {
	var list []harm
	add := func(name string, do func(b []byte) []byte) {
		list = append(list, harm{name, do})
	}
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	over := func(from, to int, with func([]byte)) func([]byte) []byte {
		return func(b []byte) []byte {
			with(b[max(from, 0):min(to, len(b))])
			return b
		}
	}
	zero := func(b []byte) { clear(b) }
	ones := func(b []byte) {
		for i := range b {
			b[i] = 0xff
		}
	}
	noise := func(b []byte) {
		rnd := rand.New(rand.NewPCG(uint64(len(b)), 3))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
	}
	pages := len(b) / 4096
	for p := 0; p < pages; p += 1 + pages/40 {
		add(fmt.Sprintf("cut to %d pages", p), cut(p*4096))
	}
	for _, n := range []int{0, 1, 100, 4095, 4097, 8191, 8192, 20_000, len(b) / 2, len(b) - 1} {
		add(fmt.Sprintf("cut to %d bytes", n), cut(n))
	}
	for name, with := range map[string]func([]byte){"zeroes": zero, "ones": ones, "noise": noise} {
		add("all "+name, over(0, len(b), with))
		add(name+" over the first meta page", over(0, 4096, with))
		add(name+" over the second meta page", over(4096, 8192, with))
		add(name+" over both meta pages", over(0, 8192, with))
		add(name+" over the first four pages", over(0, 4*4096, with))
		add(name+" over the middle", over(len(b)/3, len(b)*2/3, with))
		add(name+" over a few bytes in the middle", over(len(b)/2+100, len(b)/2+140, with))
		add(name+" over the first half", over(0, len(b)/2, with))
		add(name+" over all but the meta pages", over(8192, len(b), with))
		for p := 2; p < pages; p += 1 + pages/15 {
			add(fmt.Sprintf("%s over page %d", name, p), over(p*4096, (p+1)*4096, with))
		}
	}
	add("a text file", func([]byte) []byte { return []byte(strings.Repeat("not a database\n", 2000)) })
	add("each page moved by one", func(b []byte) []byte { return append(b[4096:], make([]byte, 4096)...) })
	for seed := range uint64(60) {
		add(fmt.Sprintf("%d bits flipped, seed %d", 1+seed*seed/4, seed), func(b []byte) []byte {
			rnd := rand.New(rand.NewPCG(seed, 9))
			for range 1 + seed*seed/4 {
				b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
			}
			return b
		})
	}
	for seed := range uint64(60) {
		add(fmt.Sprintf("4 bits flipped in the headers of pages, seed %d", seed), func(b []byte) []byte {
			rnd := rand.New(rand.NewPCG(seed, 10))
			for range 4 {
				b[rnd.IntN(pages)*4096+rnd.IntN(200)] ^= 1 << rnd.IntN(8)
			}
			return b
		})
	}
	return list
}

// answers checks that the store answers for all victims, and returns how many
// it has whole. None may be other than it was.
func answers(t testing.TB, s *Store) (whole, damaged int) {
	t.Helper()
	var hit Hit
	for i := range damagedPolicies {
		want := victim(i)
		err := s.Lookup([]byte(want.Domain), &hit)
		var bad *DamagedError
		switch {
		case err == nil:
			whole++
			if !bytes.Equal(hit.Ready, want.Ready) || hit.Expires != want.Expires.Unix() {
				t.Errorf("%s: %+v", want.Domain, hit)
			}
		case errors.As(err, &bad):
			damaged++
		case errors.Is(err, ErrUnreadable), err == ErrNotFound:
		default:
			t.Errorf("%s: %v", want.Domain, err)
		}
	}
	return whole, damaged
}

// mustWriteAtLast writes a record. A write finds damage that no lookup meets; it
// fails then, and succeeds when the file has been rebuilt.
func mustWriteAtLast(t testing.TB, s *Store, r *Record) {
	t.Helper()
	for range 3 {
		_, err := s.Write(puts(r))
		if err == nil {
			mustHold(t, s, r)
			return
		}
		if !errors.Is(err, ErrUnreadable) {
			t.Fatal(err)
		}
		awaitRebuild(t, s)
		withoutSync(s)
	}
	t.Fatal("no write succeeds")
}

// works checks that everything can be done with the store.
func works(t testing.TB, s *Store) {
	t.Helper()
	mustWriteAtLast(t, s, record("fresh.example"))
	for after, ended := "", false; !ended; {
		_, next, err := s.List(after, MaxPage)
		if err != nil || next != "" && next <= after {
			t.Fatal(next, after, err)
		}
		after, ended = next, next == ""
	}
	if _, _, err := s.Due(0, at(2*day), MaxPage); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Purge(at(-day), MaxPage); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, Op{Delete: "fresh.example"})
}

func TestADamagedFileIsOpenedAndWhatCanBeReadOfItIsThere(t *testing.T) {
	whole := wholeFile(t)
	dir := t.TempDir()
	for n, h := range harms(whole) {
		t.Run(h.name, func(t *testing.T) {
			harmed := h.do(bytes.Clone(whole))
			path := filepath.Join(dir, fmt.Sprintf("%d.db", n))
			if err := os.WriteFile(path, harmed, 0o600); err != nil {
				t.Fatal(err)
			}
			// Damage that opening does not see comes out by lookups.
			s := withoutSync(openAt(t, path, testOptions()))
			answers(t, s)
			awaitRebuild(t, s)
			withoutSync(s)
			got, damaged := answers(t, s)
			if want := stillThere(t, harmed); got+damaged < want {
				t.Errorf("%d policies and %d damaged ones are left; %d can be read", got, damaged, want)
			}
			works(t, s)
			awaitRebuild(t, s)
			closeStore(t, s)
			s = openAt(t, path, testOptions())
			if again, _ := answers(t, s); again < got {
				t.Errorf("%d policies are left after opening again, not %d", again, got)
			}
			closeStore(t, s)
		})
	}
}

// awaitRebuild waits until no rebuild is under way.
func awaitRebuild(t testing.TB, s *Store) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		s.rebuilds.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the rebuild does not end")
	}
}

func TestAFileDamagedWhileItIsOpenIsRebuilt(t *testing.T) {
	whole := wholeFile(t)
	dir := t.TempDir()
	for n, h := range harms(whole) {
		t.Run(h.name, func(t *testing.T) {
			path := filepath.Join(dir, fmt.Sprintf("%d.db", n))
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			s := withoutSync(openAt(t, path, testOptions()))
			harmed := h.do(bytes.Clone(whole))
			overwrite(t, path, harmed)

			answers(t, s)
			mustWriteAtLast(t, s, record("fresh.example"))
			awaitRebuild(t, s)
			withoutSync(s)
			got, damaged := answers(t, s)
			if want := stillThere(t, harmed); got+damaged < want {
				t.Errorf("%d policies and %d damaged ones are left; %d can be read", got, damaged, want)
			}
			mustHold(t, s, record("fresh.example"))
			closeStore(t, s)
			s = openAt(t, path, testOptions())
			mustHold(t, s, record("fresh.example"))
			if again, _ := answers(t, s); again < got {
				t.Errorf("%d policies are left after opening again, not %d", again, got)
			}
			closeStore(t, s)
		})
	}
}

// superseded is a closed file in which a policy of mode none was replaced by an
// enforced one and an enforced one was deleted; the leaf with the new one is
// unreadable, while older ones are still on free pages.
func superseded(t *testing.T) (path string) {
	t.Helper()
	s := openNew(t)
	old := record("a.example")
	old.Mode = policy.ModeNone
	mustWrite(t, s, puts(old)...)
	mustWrite(t, s, puts(record("forgotten.example"))...)
	ops := []Op{{Put: record("a.example")}, {Delete: "forgotten.example"}}
	for i := range 200 {
		ops = append(ops, Op{Put: victim(i)})
	}
	mustWrite(t, s, ops...)
	sn := s.current()
	root, err := sn.policy.rootPage()
	sn.release()
	if err != nil || root.leaf() {
		t.Fatalf("the policies are on a single page: %v", err)
	}
	leaf := int(root.child(0)) * 4096
	closeStore(t, s)
	b, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[leaf : leaf+4096])
	if err := os.WriteFile(s.path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return s.path
}

func TestARebuildBringsBackNothingThatWasReplacedOrDeleted(t *testing.T) {
	s := openAt(t, superseded(t), testOptions())
	if _, err := s.Get("a.example"); !errors.Is(err, ErrUnreadable) {
		t.Fatal(err)
	}
	awaitRebuild(t, s)
	for _, d := range []string{"a.example", "forgotten.example"} {
		if r, err := s.Get(d); err != ErrNotFound {
			t.Errorf("%s: %v, %v", d, r.Mode, err)
		}
	}
	mustHold(t, s, victim(199))
	checkStore(t, s)
}

func TestASalvageThatKnowsNoFreePagesTakesEnforcedPoliciesOnlyAndHasThemFetched(t *testing.T) {
	path := superseded(t)
	clobber(t, path, int64(metaOf(t, path).freelist)*4096, 4096)
	clobber(t, path, int64(metaOf(t, path).root)*4096, 4096)
	o := testOptions()
	o.Now = func() time.Time { return at(time.Hour) }
	s := openAt(t, path, o)
	if r, err := s.Get("a.example"); err != ErrNotFound {
		t.Errorf("it was none and then enforced, which was lost: now %v, %v", r.Mode, err)
	}
	for _, d := range []string{"forgotten.example", victim(199).Domain} { // that it was forgotten is not known
		r, err := s.Get(d)
		now := at(time.Hour)
		if err != nil || r.Mode != policy.ModeEnforce || !r.Due.Equal(now) || !r.CheckAt.Equal(now) || !r.FetchAt.Equal(now) {
			t.Errorf("%s: %v, due %v; %v", d, r.Mode, r.Due, err)
		}
	}
	checkStore(t, s)
}

func TestTheScanOfAFileThatIsShorterThanItWasSaidToBeEnds(t *testing.T) {
	f, err := os.Open("/sys/kernel/mm/transparent_hugepage/enabled") // its size is said to be a page
	if err != nil {
		if f, err = os.Open("/sys/kernel/uevent_seqnum"); err != nil {
			t.Fatal(err)
		}
	}
	defer f.Close()
	s := openNew(t)
	c := carrier{store: s, to: s.file}
	done := make(chan error, 1)
	go func() { done <- c.carryScan(f, nil) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		close(s.closing) // ends it
		<-done
		s.closing = make(chan struct{})
		t.Error("it does not end")
	}
}

func TestAWriteBesideALeafWhoseFirstKeyIsAnotherIsNotLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	if err := os.WriteFile(path, wholeFile(t), 0o600); err != nil {
		t.Fatal(err)
	}
	s := withoutSync(openAt(t, path, testOptions()))
	sn := s.current()
	root, err := sn.policy.rootPage()
	if err != nil || root.leaf() {
		t.Fatalf("the root of the tree: leaf %t, %v", root.leaf(), err)
	}
	leaf, err := sn.policy.at(root.child(root.count() - 1))
	if err != nil {
		t.Fatal(err)
	}
	k, err := leaf.key(0)
	if err != nil {
		t.Fatal(err)
	}
	harmed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	start := int(leaf.id() * sn.policy.size)
	at := start + bytes.Index(harmed[start:start+len(leaf)], k) + len("d000.exam") // the order of the keys stays
	harmed[at] ^= 1
	overwrite(t, path, harmed)
	sn.release()

	if _, err := s.Write(puts(record("fresh.example"))); !errors.Is(err, ErrUnreadable) {
		t.Fatalf("written: %v", err)
	}
	awaitRebuild(t, s)
	withoutSync(s)
	mustWriteAtLast(t, s, record("fresh.example"))
	if got, damaged := answers(t, s); got != damagedPolicies || damaged != 0 {
		t.Errorf("%d policies and %d damaged ones are left of %d", got, damaged, damagedPolicies)
	}
}

// overwrite changes the file in place, as one would that does not know of us.
func overwrite(t testing.TB, path string, with []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		err = errors.Join(f.Truncate(int64(len(with))), func() error { _, err := f.WriteAt(with, 0); return err }(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}
