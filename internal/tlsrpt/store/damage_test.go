package store_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// overwrite changes the file in place, as a failing disk does.
func overwrite(t *testing.T, path string, harm func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	b = harm(b)
	if err := fd.Truncate(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	if _, err := fd.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedFileIsSetAsideAndANewOneBegun(t *testing.T) {
	noise := rand.New(rand.NewPCG(1, 2))
	harms := map[string]func([]byte) []byte{
		"zeroes": func(b []byte) []byte { clear(b); return b },
		"noise": func(b []byte) []byte {
			for i := range b {
				b[i] = byte(noise.Uint32())
			}
			return b
		},
		"noise behind the meta pages": func(b []byte) []byte {
			for i := 8192; i < len(b); i++ {
				b[i] = byte(noise.Uint32())
			}
			return b
		},
		"cut":   func(b []byte) []byte { return b[:8192] },
		"empty": func(b []byte) []byte { return b[:0] },
		"text":  func(b []byte) []byte { return []byte(strings.Repeat("not a database\n", 1000)) },
	}
	for name, harm := range harms {
		for _, open := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				l := newLab(t, store.Options{})
				var events []tlsrpt.Event
				for i := range 3000 {
					events = append(events, success(numbered(i)))
				}
				l.write(events...)
				l.merge()
				l.write(success("waiting.test")) // in the log
				if open {
					overwrite(t, l.path, harm)
				} else {
					if err := l.Close(); err != nil {
						t.Fatal(err)
					}
					overwrite(t, l.path, harm)
					l.open()
				}
				for range 3 { // what meets the damage may fail
					_ = l.Upkeep()
					_, _ = l.domains(day)
					_ = l.SetStage("2026-01-01", tlsrpt.StageClosed)
					l.clock.add(60 * 60 * 1e9)
				}
				l.write(success("new.test"))
				l.merge()
				l.mustCount(day, "new.test", 1, 0)
				if st := l.Stats(); st.Err != nil || st.Damaged == 0 {
					t.Errorf("%+v", st)
				}
				if _, err := os.Stat(l.path + ".damaged"); err != nil || !strings.Contains(l.log.String(), "set aside") {
					t.Errorf("%v, %s", err, &l.log)
				}
				l.reopen()
				l.mustCount(day, "new.test", 1, 0)
			})
		}
	}
}

func TestAFileThatWasRemovedIsMadeAgain(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"))
	l.merge()
	if err := os.Remove(l.path); err != nil {
		t.Fatal(err)
	}
	l.upkeep()
	l.write(success("b.test"))
	l.merge()
	l.mustCount(day, "b.test", 1, 0)
	if _, err := os.Stat(l.path); err != nil {
		t.Error(err)
	}
}

func TestAPathThatCannotBeUsedIsAnErrorAndNoDamage(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"))
	l.merge()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(l.path, l.path+".elsewhere"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(l.path, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 20 { // the service tries each minute
		if _, err := store.Open(l.path, l.o); err == nil {
			t.Fatal("a folder is opened")
		}
	}
	if err := errors.Join(os.Remove(l.path), os.Rename(l.path+".elsewhere", l.path)); err != nil {
		t.Fatal(err)
	}
	l.open()
	l.mustCount(day, "a.test", 1, 0)
	if st := l.Stats(); st.Damaged != 0 {
		t.Errorf("%+v", st)
	}
}

// Each crash leaves one byte in a file beside the store.
func TestTenStartsThatEndBeforeAMergeAreDamage(t *testing.T) {
	l := newLab(t, store.Options{})
	l.write(success("a.test"))
	l.merge()
	for n := 0; n <= 10; n++ {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(l.path+".starts", make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
		l.open()
		if want := uint64(n / 10); l.Stats().Damaged != want {
			t.Fatalf("%d crashes: %+v", n, l.Stats())
		}
	}
	l.upkeep()
	if _, err := os.Stat(l.path + ".starts"); err == nil {
		t.Error("the count goes on after a merge")
	}
}
