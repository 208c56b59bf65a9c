//go:build slow && linux

package store_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

func TestAMillionDomainsLeaveTheCountsOfHonestOnesRight(t *testing.T) {
	manyDomains(t, 1_000_000, 48<<20)
}

func TestAMillionDetailsAreFoldedIntoAHundred(t *testing.T) { manyDetails(t, 1_000_000) }

const smallDiskVariable = "STS_TLSMAP_REPORTS_SMALL_DISK"

// The test runs in a child with a disk of its own.
func TestAFullDiskLosesNothingThatIsWrittenAgainAndIsNoDamage(t *testing.T) {
	dir, isChild := os.LookupEnv(smallDiskVariable)
	if !isChild {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), smallDiskVariable+"="+t.TempDir())
		cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		if os.Getuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("none", dir, "tmpfs", 0, "size=24m")); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, store.Options{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.path = filepath.Join(dir, "reports.db")
	l.open()
	junk := filepath.Join(dir, "junk")
	for round := range 3 {
		sent, failed := 0, 0
		for {
			l.batch.Reset(day)
			for i := range 2000 {
				e := success(fmt.Sprintf("r%d-%d-%d.test", round, sent, i))
				l.batch.Add(&e)
			}
			err := l.Write(&l.batch)
			if errors.Is(err, unix.ENOSPC) {
				if failed++; failed == 3 {
					break
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			sent++
			if sent == 2 {
				_ = os.WriteFile(junk, make([]byte, 64<<20), 0o600) // as much as there is room for
			}
		}
		if err := l.Merge(); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("a merge onto a full disk: %v", err)
		}
		if err := os.Remove(junk); err != nil {
			t.Fatal(err)
		}
		if err := l.Write(&l.batch); err != nil {
			t.Fatal(err)
		}
		l.merge()
		for n := range sent + 1 {
			for i := 0; i < 2000; i += 100 {
				l.mustCount(day, fmt.Sprintf("r%d-%d-%d.test", round, n, i), 1, 0)
			}
		}
	}
	if st := l.Stats(); st.Damaged != 0 || st.Err != nil || strings.Contains(l.log.String(), "cannot be read") {
		t.Errorf("%+v", st)
	}
}
