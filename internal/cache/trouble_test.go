package cache

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
)

// spoil flips a bit in the text of a stored policy, in the file.
func spoil(t testing.TB, s *Store, domain string) {
	t.Helper()
	b, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := record(domain).Text
	for at := 0; ; at++ { // every copy, also those on free pages
		i := bytes.Index(b[at:], text)
		if i < 0 {
			return
		}
		at += i
		if _, err := f.WriteAt([]byte{b[at] ^ 1}, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestADamagedPolicyIsKnownToHaveBeenHeldUntilItIsPutAgain(t *testing.T) {
	s := openNew(t)
	r := record("a.example")
	mustWrite(t, s, puts(r, record("b.example"))...)
	spoil(t, s, "a.example")
	mustBeDamaged(t, s, "a.example")
	mustHold(t, s, record("b.example"))

	list, _, err := s.List("", 10)
	if err != nil || len(list) != 2 || list[0].Domain != "a.example" || list[0].LastError == "" || list[0].Mode != r.Mode {
		t.Errorf("List: %+v, %v", list, err)
	}
	if due, _, err := s.Due(0, r.Due, 10); err != nil || len(due) != 2 {
		t.Errorf("Due: %+v, %v", due, err)
	}
	mustWrite(t, s, Op{Put: r})
	mustHold(t, s, r)
	checkStore(t, s)
}

func mustBeDamaged(t testing.TB, s *Store, domain string) {
	t.Helper()
	var hit Hit
	var damaged *DamagedError
	if err := s.Lookup([]byte(domain), &hit); !errors.As(err, &damaged) || damaged.Domain != domain {
		t.Errorf("Lookup: %v", err)
	}
	if r, err := s.Get(domain); !errors.As(err, &damaged) || r.Domain != domain || r.LastError == "" {
		t.Errorf("Get: %+v, %v", r, err)
	}
}

func TestADamagedPolicyOutlivesARebuildAndASalvageAndEndsWithItsLife(t *testing.T) {
	s := openNew(t)
	mustWrite(t, s, puts(record("a.example"), record("b.example"))...)
	spoil(t, s, "a.example")
	s.rebuild(errors.New("a test"))
	if st := s.Stats(); st.Rebuild == nil || st.Rebuild.Damaged != 1 || st.Rebuild.Recovered != 1 || st.Policies() != 2 {
		t.Fatalf("%+v", st.Rebuild)
	}
	mustBeDamaged(t, s, "a.example")
	mustHold(t, s, record("b.example"))
	if due, _, err := s.Due(0, noon, 10); err != nil || len(due) != 1 || due[0].Domain != "a.example" {
		t.Errorf("it is due at once, to be fetched: %+v, %v", due, err)
	}
	closeStore(t, s)
	// The list of free pages is lost, the rest is whole.
	m := metaOf(t, s.path)
	clobber(t, s.path, int64(m.freelist)*int64(m.pageSize), 16)
	s = openAt(t, s.path, testOptions())
	if st := s.Stats(); st.Salvage == nil || st.Salvage.Damaged != 1 || st.Salvage.Recovered != 1 {
		t.Fatalf("%+v", st.Salvage)
	}
	mustBeDamaged(t, s, "a.example")
	if purged, err := s.Purge(record("a.example").Expires.Add(time.Second), 10); err != nil || len(purged) != 2 {
		t.Errorf("%v, %v", purged, err)
	}
	mustWrite(t, s, puts(record("a.example"))...)
	s.lines.forget()
	s.Due(0, noon, 10)                            // finds entries that damage has left
	mustWrite(t, s, puts(record("b.example"))...) // takes them out
	if due, _, err := s.Due(0, noon, 10); err != nil || len(due) != 0 {
		t.Errorf("%v, %v", due, err)
	}
}

func metaOf(t testing.TB, path string) meta {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, whole := readMetas(f)
	if whole != 2 {
		t.Fatalf("%d whole meta pages", whole)
	}
	return m
}

func clobber(t testing.TB, path string, at int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(bytes.Repeat([]byte{0xee}, n), at)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Pages that run in a circle would overflow the stack of a reader that recurses.
func TestPagesThatRunInACircleAreAnErrorAndRebuilt(t *testing.T) {
	for name, meet := range map[string]func(*Store){
		"lookup": func(s *Store) { s.Get("d000.example") },
		"list":   func(s *Store) { s.List("", MaxPage) },
		"write":  func(s *Store) { s.Write(puts(victim(0))) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cache.db")
			if err := os.WriteFile(path, wholeFile(t), 0o600); err != nil {
				t.Fatal(err)
			}
			s := withoutSync(openAt(t, path, testOptions()))
			sn := s.current()
			root, err := sn.policy.rootPage()
			if err != nil || root.leaf() {
				t.Fatal("the root is no branch", err)
			}
			id := root.id()
			sn.release()
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, 8)
			native.PutUint64(b, id)
			if _, err := f.WriteAt(b, int64(id)*4096+pageHeader+8); err != nil {
				t.Fatal(err)
			}
			meet(s)
			awaitRebuild(t, s)
			if n, _ := answers(t, s); n != damagedPolicies {
				t.Errorf("%d policies are left", n)
			}
			if st := s.Stats(); st.Rebuilds != 1 {
				t.Errorf("%d rebuilds", st.Rebuilds)
			}
			checkStore(t, s)
		})
	}
}

func TestLookupsGoOnWhileTheFileIsRebuiltAndWritesAreBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := withoutSync(openNew(t))
		mustWrite(t, s, puts(record("a.example"))...)
		s.turn <- struct{}{} // as the rebuild has it
		mustHold(t, s, record("a.example"))
		before := time.Now()
		if _, err := s.Write(puts(record("b.example"))); !errors.Is(err, ErrBusy) {
			t.Errorf("Write: %v", err)
		}
		if waited := time.Since(before); waited != turnWait {
			t.Errorf("Write waited %v", waited)
		}
		<-s.turn
		mustWrite(t, s, puts(record("b.example"))...)
		closeStore(t, s)
	})
}

func TestCloseDoesNotWaitForARebuildThatHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, testOptions())
		if err != nil {
			t.Fatal(err)
		}
		hung := make(chan struct{})
		s.rebuilds.running.Go(func() { <-hung }) // as one in a sync
		before := time.Now()
		if err := s.Close(); err == nil || !strings.Contains(err.Error(), "a rebuild does not end") {
			t.Errorf("Close: %v", err)
		}
		if waited := time.Since(before); waited != closeWait {
			t.Errorf("it waited %v", waited)
		}
		close(hung)
	})
}

func TestTroubleHasTheFileRebuiltOnceInAWhile(t *testing.T) {
	var mu sync.Mutex
	now := noon
	o := testOptions()
	o.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	s := withoutSync(openAt(t, filepath.Join(t.TempDir(), "cache.db"), o))
	mustWrite(t, s, puts(record("a.example"))...)
	meet := func(want int) {
		t.Helper()
		for range 10 {
			if err := s.noticed(&pageError{7, "is not there"}); !errors.Is(err, ErrUnreadable) {
				t.Errorf("%v", err)
			}
		}
		awaitRebuild(t, s)
		mu.Lock()
		defer mu.Unlock()
		if n := s.Stats().Rebuilds; n != uint64(want) {
			t.Fatalf("%d rebuilds, not %d", n, want)
		}
		now = now.Add(rebuildPause / 2)
	}
	meet(1)
	meet(1)
	meet(2)
	mustHold(t, s, record("a.example"))
}

func TestAPanicInATransactionGivesBboltUpAndRebuilds(t *testing.T) {
	s := withoutSync(openNew(t))
	mustWrite(t, s, puts(record("a.example"))...)
	err := s.file.update(func(tx *bbolt.Tx) error { panic("as bbolt does") })
	if !errors.Is(err, ErrUnreadable) {
		t.Fatal(err)
	}
	mustHold(t, s, record("a.example"))
	mustWriteAtLast(t, s, record("b.example"))
	mustHold(t, s, record("a.example"))
	checkStore(t, s)
}

func TestReadersSeeWholeStatesWhileOthersWriteAndTheFileIsRebuilt(t *testing.T) {
	s := withoutSync(openNew(t))
	const n = 200
	generation := func(g int) []Op {
		var ops []Op
		for i := range n {
			r := record(fmt.Sprintf("d%03d.example", i))
			r.Ready = bytes.Repeat([]byte{byte('a' + g%26)}, 10+g*37%3000)
			r.Due = at(-time.Duration(g) * time.Second)
			ops = append(ops, Op{Put: r})
		}
		return ops
	}
	mustWrite(t, s, generation(0)...)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for reader := range 3 {
		readers.Go(func() {
			var hit Hit
			for i := reader; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := s.Lookup(fmt.Appendf(nil, "d%03d.example", i%n), &hit); err != nil {
					t.Error(err)
					return
				}
				if len(bytes.Trim(hit.Ready, string(hit.Ready[:1]))) != 0 {
					t.Errorf("a mixture: %q", hit.Ready)
				}
				if i%100 == reader {
					if list, _, err := s.List("", n); err != nil || len(list) != n || !bytes.Equal(list[0].Ready, list[n-1].Ready) {
						t.Errorf("%d listed, %v", len(list), err)
					}
					if due, _, err := s.Due(0, noon, n); err != nil || len(due) != n {
						t.Errorf("%d due, %v", len(due), err)
					}
				}
			}
		})
	}
	for g := range 60 {
		mustWrite(t, s, generation(g)...)
		if g%20 == 10 {
			s.rebuild(errors.New("a test"))
			withoutSync(s)
		}
	}
	close(stop)
	readers.Wait()
	checkStore(t, s)
	s.takeTurn(time.Second)
	s.renew(newPlan(s.snap.Load(), s.options), true)
	s.endTurn()
	if len(s.old) != 0 || len(s.file.retired) > 1 {
		t.Errorf("%d files and %d states are still open", len(s.old), len(s.file.retired))
	}
}
