package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

func TestASecondDaemonIsToldWhoHasTheCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	cmd, stdin, lines := child(t, "hold it open", path)
	says(t, lines, "open")
	for name, open := range map[string]func() (*Store, error){
		"to write": func() (*Store, error) { return Open(path, testOptions()) },
		"to read":  func() (*Store, error) { return OpenReadOnly(path) },
	} {
		_, err := open()
		var locked *LockedError
		if !errors.As(err, &locked) || locked.PID != cmd.Process.Pid || locked.Command != "exe" {
			t.Errorf("%s: %v", name, err)
		}
	}
	stdin.Close()
	cmd.Wait()
	openAt(t, path, testOptions())
}

func TestADaemonIsToldThatSomeoneReads(t *testing.T) {
	s := openNew(t)
	closeStore(t, s)
	_, _, lines := child(t, "hold it to read", s.path)
	says(t, lines, "open")
	_, err := Open(s.path, testOptions())
	var locked *LockedError
	if !errors.As(err, &locked) {
		t.Errorf("%v", err)
	}
	reader, err := OpenReadOnly(s.path) // readers share it
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, reader)
}

func TestOpenReadOnlyReadsAndWritesNothing(t *testing.T) {
	s := openNew(t)
	if _, err := OpenReadOnly(filepath.Join(t.TempDir(), "none.db")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	r := record("a.example")
	mustWrite(t, s, puts(r, record("b.example"))...)
	closeStore(t, s)
	before, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	s, err = OpenReadOnly(s.path)
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, s, r)
	if list, _, err := s.List("", 10); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := s.Write(puts(r)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Write: %v", err)
	}
	if st := s.Stats(); st.Policies() != 2 {
		t.Errorf("%+v", st)
	}
	checkStore(t, s)
	closeStore(t, s)
	after, err := os.ReadFile(s.path)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file has changed (%v)", err)
	}
}

func TestOpenReadOnlyLeavesADamagedFileAsItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	damaged := wholeFile(t)
	clear(damaged[:8192])
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReadOnly(path); !errors.Is(err, ErrUnreadable) {
		t.Errorf("%v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, damaged) {
		t.Errorf("the file has changed (%v)", err)
	}
}

func TestAFileOfALaterSchemaIsLeftAlone(t *testing.T) {
	s := openNew(t)
	err := s.file.update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keySchema, binary.LittleEndian.AppendUint32(nil, schemaVersion+1))
	})
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	for name, open := range map[string]func() (*Store, error){
		"to write": func() (*Store, error) { return Open(s.path, testOptions()) },
		"to read":  func() (*Store, error) { return OpenReadOnly(s.path) },
	} {
		_, err = open()
		var newer *SchemaError
		if !errors.As(err, &newer) || newer.Schema != schemaVersion+1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(s.path)); err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestWhatIsNoFileIsLeftInItsPlace(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	l, err := net.Listen("unix", at("socket"))
	if err == nil {
		defer l.Close()
		err = errors.Join(os.Mkdir(at("folder"), 0o700), unix.Mkfifo(at("pipe"), 0o600), os.Symlink(at("folder"), at("link")))
	}
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		at("folder"): at("folder") + " is a folder; name a file in it",
		at("link"):   at("folder") + " is a folder; name a file in it",
		at("pipe"):   at("pipe") + " is a pipe, not a file",
		at("socket"): at("socket") + " is a socket, not a file",
		"/dev/null":  "/dev/null is a device, not a file",
	} {
		s, err := Open(path, testOptions())
		if s != nil {
			s.Close()
		}
		_, readErr := OpenReadOnly(path)
		for _, err := range []error{err, readErr} {
			var no *NotAFileError
			if !errors.As(err, &no) || err.Error() != want {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestAMissingDirectoryIsAnError(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "no", "cache.db"), testOptions())
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestASymbolicLinkIsFollowedAndItsTargetReplaced(t *testing.T) {
	target, link := filepath.Join(t.TempDir(), "disk2.db"), filepath.Join(t.TempDir(), "cache.db")
	damaged := wholeFile(t)
	clear(damaged[:8192])
	if err := os.WriteFile(target, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	s := openAt(t, link, testOptions())
	if n, _ := answers(t, s); n != damagedPolicies {
		t.Errorf("%d policies", n)
	}
	if to, err := os.Readlink(link); err != nil || to != target {
		t.Errorf("%s, %v", to, err)
	}
}

func TestADamagedFileIsKeptAsItWasAndAFewOlderOnes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	for i := range 5 {
		damaged := append(bytes.Clone(wholeFile(t)[:4096]), byte(i))
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		s := openAt(t, path, testOptions())
		report := s.Stats().Salvage
		if report == nil || !strings.HasPrefix(report.MovedTo, path+asideSuffix) || !errors.Is(report.Why, errNotWhole) {
			t.Fatalf("%+v", report)
		}
		if kept, err := os.ReadFile(report.MovedTo); err != nil || !bytes.Equal(kept, damaged) {
			t.Errorf("what was moved aside is not what was there (%v)", err)
		}
		closeStore(t, s)
	}
	aside, err := filepath.Glob(path + asideSuffix + "*")
	if err != nil || len(aside) != asideKept {
		t.Errorf("%v, %v", aside, err)
	}
}

func TestACrashInTheMiddleOfARebuildLosesNothing(t *testing.T) {
	s := openNew(t)
	mustWrite(t, s, puts(record("a.example"))...)
	closeStore(t, s)
	// Before the new file is in place: it does not count.
	if err := os.WriteFile(s.path+rebuildSuffix, []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, s.path, testOptions())
	mustHold(t, s, record("a.example"))
	if _, err := os.Stat(s.path + rebuildSuffix); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the half file: %v", err)
	}
	closeStore(t, s)
	// Between the two renames.
	if err := os.Rename(s.path, s.path+rebuildSuffix); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, s.path, testOptions())
	mustHold(t, s, record("a.example"))
}

func TestAWriteAfterASalvageIsNewerThanWhatWasSalvaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	damaged := wholeFile(t)
	clear(damaged[:8192])
	for round := range 3 {
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		s := openAt(t, path, testOptions())
		want := record("d001.example")
		want.ID = fmt.Sprint("round ", round)
		want.Due, want.CheckAt, want.FetchAt, want.FetchUnusedAt = noon, noon, noon, noon // as what a scan finds
		mustWrite(t, s, puts(want)...)
		closeStore(t, s)
		// All pages that point to values are lost; old copies are about.
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		clear(b[:8192])
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s = openAt(t, path, testOptions())
		mustHold(t, s, want)
		checkStore(t, s)
		closeStore(t, s)
		damaged = b
	}
}
