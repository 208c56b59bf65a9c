package store_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// The test that kills needs a process to kill: this test binary, told by a variable
// where to write and from when.
const childVariable = "STS_TLSMAP_REPORTS_CHILD"

func TestMain(m *testing.M) {
	if what, ok := os.LookupEnv(childVariable); ok {
		fmt.Println("error:", writeForEver(what))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const (
	perBatch = 600 // sessions of a domain each; a merge of an hour has three transactions
	sample   = 25  // of these, one is looked at
)

func killed(batch int64, i int) string { return fmt.Sprintf("b%d-%d.test", batch, i) }

// writeForEver writes a batch each five minutes of its clock, merges each hour, and says
// after each batch which it was. The number of a batch is its minute.
func writeForEver(what string) error {
	var c clock
	var minute int64
	var path string
	if _, err := fmt.Sscan(what, &minute, &path); err != nil {
		return err
	}
	s, err := store.Open(path, store.Options{Now: c.now, Keep: 1000 * 24 * time.Hour})
	if err != nil {
		return err
	}
	var b store.Batch
	for ; ; minute += 5 {
		c.nano.Store(time.Unix(minute*60, 0).UnixNano())
		b.Reset(tlsrpt.DayOf(c.now()))
		for i := range perBatch {
			e := success(killed(minute, i))
			b.Add(&e)
		}
		e := success("common.test")
		b.Add(&e)
		if err := s.Write(&b); err != nil {
			return err
		}
		fmt.Println(minute)
		if err := s.Upkeep(); err != nil {
			return err
		}
	}
}

// In the burst, at the merge, and at midnight: what was written is there once, and of
// what was being written all or nothing.
func TestKill9LosesNothingThatWasWrittenAndCountsNothingTwice(t *testing.T) {
	l := newLab(t, store.Options{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.o.Keep = 1000 * 24 * time.Hour
	l.path = filepath.Join(t.TempDir(), "reports.db")
	begin := day.Begin().Add(22*time.Hour).Unix() / 60
	minute := begin
	written := make(map[int64]bool)
	for round := range 9 {
		at := "" // the line after which it is killed
		switch round % 3 {
		case 0: // in the burst
			at = fmt.Sprint(minute + 5*rand.Int64N(12))
		case 1: // at the merge of a whole hour
			minute += 60 - minute%60
			at = fmt.Sprint(minute + 60)
		case 2: // at midnight, or when the day is closed
			minute += 24*60 - minute%(24*60)
			at = fmt.Sprint(minute + 10*rand.Int64N(2))
			minute -= 50
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", childVariable, minute, l.path))
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			line := scanner.Text()
			if line == at {
				time.AfterFunc(time.Duration(rand.IntN(20_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
				at = ""
			}
			if _, err := fmt.Sscan(line, &minute); err != nil {
				t.Fatal(line)
			}
			written[minute] = true
		}
		_ = cmd.Wait()
		minute += 10 // past the batch that may have been under way
	}
	l.clock.nano.Store(time.Unix(minute*60, 0).Add(48 * time.Hour).UnixNano())
	l.open()
	l.upkeep()
	l.upkeep()
	whole := make(map[tlsrpt.Day]uint64)
	for m := begin; m < minute; m += 5 {
		d := tlsrpt.DayOf(time.Unix(m*60, 0))
		n := 0
		for i := 0; i < perBatch; i += sample {
			switch p := l.load(d, killed(m, i)).Policies; {
			case len(p) == 1 && p[0].Successful == 1:
				n++
			case len(p) > 0:
				t.Fatalf("%s: %+v", killed(m, i), p)
			}
		}
		if n != perBatch/sample && (n != 0 || written[m]) {
			t.Errorf("batch %d, written: %v: %d of %d sessions", m, written[m], n, perBatch/sample)
		}
		if n > 0 {
			whole[d]++
		}
	}
	for d, n := range whole {
		l.mustCount(d, "common.test", n, 0)
		l.mustClose(d, true)
	}
	for reason := range l.Stats().Dropped {
		l.mustDrop(reason, 0)
	}
	t.Logf("%d batches written, on %d days", len(written), len(whole))
	if len(whole) < 2 {
		t.Errorf("there was no midnight: %v", whole)
	}
}
