//go:build slow && linux

package cache_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

func TestReadablePoliciesSurviveAnyDamage(t *testing.T) { damageMatrix(t, true) }

func TestDamageHangsNoOtherReaderOrWriter(t *testing.T) {
	whole := wholeFile(t)
	for i, h := range harms(whole) {
		if i%5 != 0 {
			continue
		}
		t.Run(h.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cache.db")
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, path, options())
			harmed := h.do(bytes.Clone(whole))
			var wg sync.WaitGroup
			end := make(chan struct{})
			for g := range 8 {
				wg.Go(func() {
					var hit cache.Hit
					for n := g; ; n++ {
						select {
						case <-end:
							return
						default:
						}
						want := victim(n % victims)
						if err := s.Lookup([]byte(want.Domain), &hit); err == nil && !bytes.Equal(hit.Match, want.Match) {
							t.Errorf("%s: %q", want.Domain, hit.Match)
						}
					}
				})
			}
			wg.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-end:
						return
					default:
						_, _ = s.Write(puts(record(fmt.Sprintf("w%d.example", n))))
					}
				}
			})
			time.Sleep(time.Duration(i%5) * time.Millisecond)
			overwrite(t, path, harmed)
			time.Sleep(20 * time.Millisecond)
			writeAtLast(t, s, record("fresh.example"))
			close(end)
			done := make(chan struct{})
			go func() { wg.Wait(); close(done) }()
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Fatal("a reader or the writer hangs")
			}
			settled(t, s)
			closeStore(t, s)
		})
	}
}

// Some tests need a process of their own. It is this test binary, told by a
// variable what to do.
const childVariable = "STS_TLSMAP_CACHE_CHILD"

func TestMain(m *testing.M) {
	if what, path, ok := strings.Cut(os.Getenv(childVariable), ":"); ok {
		if err := map[string]func(string) error{"write": writeForEver, "look": lookUp, "small": onASmallDisk}[what](path); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(t *testing.T, what, path string, prepare ...func(*exec.Cmd)) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"="+what+":"+path)
	for _, p := range prepare {
		p(cmd)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

func crashRecord(i int) *cache.Record {
	r := record(fmt.Sprintf("r%d.example", i))
	r.Text = bytes.Repeat([]byte("x"), i*37%3000)
	return r
}

// writeForEver writes records and says after each commit how many there are.
func writeForEver(path string) error {
	s, err := cache.Open(path, cache.Options{Now: func() time.Time { return noon }})
	if err != nil {
		return err
	}
	i := int(s.Stats().Policies())
	for {
		var ops []cache.Op
		for range 1 + rand.IntN(30) {
			ops = append(ops, cache.Op{Put: crashRecord(i)})
			i++
		}
		if _, err := s.Write(ops); err != nil {
			return err
		}
		fmt.Println(i)
	}
}

func TestWhatWasWrittenSurvivesKill9(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	written := 0
	for round := range 200 {
		cmd, lines := child(t, "write", path)
		for n := rand.IntN(8); lines.Scan(); n-- {
			if _, err := fmt.Sscan(lines.Text(), &written); err != nil {
				t.Fatal(lines.Text())
			}
			if n == 0 {
				go func() {
					time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
					cmd.Process.Kill()
				}()
			}
		}
		_ = cmd.Wait()
		_ = os.Remove(path + ".starts") // these crashes are no damage
		if round%50 != 49 {
			continue
		}
		s := open(t, path, options())
		if st := s.Stats(); st.Salvage != nil || int(st.Policies()) < written {
			t.Fatalf("round %d: %+v, %d were written", round, st, written)
		}
		for i := range written {
			mustHold(t, s, crashRecord(i))
		}
		closeStore(t, s)
	}
}

// lookUp looks all victims up.
func lookUp(path string) error {
	debug.SetMaxStack(64 << 20) // as the daemon does, so that endless recursion ends soon
	s, err := cache.Open(path, options())
	if err != nil {
		return err
	}
	time.Sleep(50 * time.Millisecond)
	for i := range victims {
		_ = s.Lookup([]byte(victim(i).Domain), new(cache.Hit))
	}
	for s.Stats().Salvaging {
		time.Sleep(time.Millisecond)
	}
	whole := 0
	for i := range victims {
		if s.Lookup([]byte(victim(i).Domain), new(cache.Hit)) == nil {
			whole++
		}
	}
	fmt.Println(whole)
	return s.Close()
}

func TestACircleOfPagesCountsAsDamageAfterTenCrashes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	b := wholeFile(t)
	circles := 0
	for at := 4096 * 2; at < len(b); at += 4096 { // each branch page leads to itself
		if binary.LittleEndian.Uint16(b[at+8:]) != 1 || binary.LittleEndian.Uint64(b[at:]) != uint64(at/4096) {
			continue
		}
		for i := range int(binary.LittleEndian.Uint16(b[at+10:])) {
			binary.LittleEndian.PutUint64(b[at+16+16*i+8:], uint64(at/4096))
		}
		circles++
	}
	if circles == 0 {
		t.Fatal("no branch page")
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for n := 1; ; n++ {
		cmd, lines := child(t, "look", path)
		said := ""
		for lines.Scan() {
			said = lines.Text()
		}
		if err := cmd.Wait(); err == nil {
			if t.Logf("start %d: %s policies", n, said); said != fmt.Sprint(victims) {
				t.Errorf("%s of %d policies are left", said, victims)
			}
			break
		}
		if n > 12 {
			t.Fatal("it crashes for ever")
		}
	}
}

// onASmallDisk opens a damaged file on a disk of its own without room for another,
// and again when there is room.
func onASmallDisk(path string) error {
	whole, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	disk := path + ".disk"
	if err := errors.Join(os.Mkdir(disk, 0o700), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("none", disk, "tmpfs", 0, fmt.Sprintf("size=%d", len(whole)+1<<20))); err != nil {
		return err
	}
	cached, junk := filepath.Join(disk, "cache.db"), filepath.Join(disk, "junk")
	clear(whole[:4096])
	if err := os.WriteFile(cached, whole, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(junk, make([]byte, 4<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("4 MiB go onto a full disk: %v", err)
	}
	for _, full := range []bool{true, false} {
		s, err := cache.Open(cached, options())
		if err != nil {
			return err
		}
		for s.Stats().Salvaging {
			time.Sleep(time.Millisecond)
		}
		for i := range victims {
			if err := s.Lookup([]byte(victim(i).Domain), new(cache.Hit)); err != nil {
				return fmt.Errorf("full %t: %s: %w", full, victim(i).Domain, err)
			}
		}
		if _, err := s.Write(puts(record("new.example"))); err != nil {
			return err
		}
		if st := s.Stats(); (st.MemoryOnly != nil) != full || st.Salvage == nil || (st.Salvage.MovedTo == "") != full {
			return fmt.Errorf("full %t: %+v", full, st)
		}
		if !full {
			if err := fillUp(s, junk); err != nil {
				return err
			}
		}
		if err := errors.Join(s.Close(), os.RemoveAll(junk)); err != nil {
			return err
		}
	}
	// Read-only, with a whole file.
	if err := unix.Mount("none", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	s, err := cache.Open(cached, options())
	if err != nil {
		return err
	}
	if st := s.Stats(); !errors.Is(st.MemoryOnly, unix.EROFS) || st.Policies() <= victims {
		return fmt.Errorf("read-only: %+v", st)
	}
	return s.Close()
}

// fillUp writes until the disk is full, and again when it is not.
func fillUp(s *cache.Store, junk string) error {
	_ = os.WriteFile(junk, make([]byte, 64<<20), 0o600) // as much as there is room for
	large := record("large.example")
	large.Text = make([]byte, 60_000)
	var err error
	for i := 0; err == nil; i++ {
		if i > 1000 {
			return errors.New("the disk does not become full")
		}
		large.Domain = fmt.Sprintf("large%d.example", i)
		_, err = s.Write(puts(large))
	}
	if errors.Is(err, cache.ErrUnreadable) || s.Stats().Salvaging {
		return fmt.Errorf("a full disk is taken for damage: %w", err)
	}
	for i := range victims {
		if err := s.Lookup([]byte(victim(i).Domain), new(cache.Hit)); err != nil {
			return fmt.Errorf("on a full disk: %w", err)
		}
	}
	if err := os.Remove(junk); err != nil {
		return err
	}
	_, err = s.Write(puts(large))
	return err
}

func TestOnAFullOrReadOnlyDiskTheCacheIsInMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "whole.db")
	if err := os.WriteFile(path, wholeFile(t), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, lines := child(t, "small", path, func(c *exec.Cmd) {
		c.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		if os.Getuid() != 0 {
			c.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		}
	})
	for lines.Scan() {
		t.Error(lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
