package cache

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// The minute may bring a new file before the fault itself is heard of.
func TestAFileIsReplacedOnceAfterAFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(filepath.Join(t.TempDir(), "cache.db"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		broken := s.file.Load()
		_ = broken.View(func(*bbolt.Tx) error { return faultf("as the test wants it") })
		synctest.Wait()
		s.faults <- broken
		time.Sleep(10 * time.Second) // longer than it waits for the lock
		synctest.Wait()
		if st := s.Stats(); st.MemoryOnly != nil || st.Files != 2 {
			t.Errorf("%+v", st)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// What was fetched while the file was in memory is newer than what a damaged file
// is found to hold.
func TestASalvageIntoMemoryKeepsWhatIsNewer(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "missing", "cache.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := &Record{Domain: "a.example", ID: "new", Mode: policy.ModeEnforce}
	if _, err := s.Write([]Op{{Put: r}}); err != nil {
		t.Fatal(err)
	}
	old, err := valueOf(&Record{Domain: "a.example", ID: "old", Mode: policy.ModeEnforce})
	if err != nil {
		t.Fatal(err)
	}
	old.Sequence = uint64(time.Now().Add(-time.Hour).Unix()) << 20
	err = s.update(func(w *writing) error {
		_, err := w.recover([]*value{old})
		return err
	})
	if got, _ := s.Get("a.example"); err != nil || got.ID != "new" {
		t.Errorf("%+v, %v", got, err)
	}
}
