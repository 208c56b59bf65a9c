package cache

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Some tests need a process of their own, to kill it, to limit its files, or to
// take its privileges. It is this test binary with a name of what to do.
const childVariable = "STS_TLSMAP_CACHE_CHILD"

var children = map[string]func(path string) error{
	"write for ever":   writeForEver,
	"fill the disk":    fillTheDisk,
	"open on a full":   openOnAFullDisk,
	"open unreadable":  openUnreadable,
	"hold it open":     holdOpen,
	"hold it to read":  holdToRead,
	"open it a second": openSecond,
}

func TestMain(m *testing.M) {
	if what, path, ok := strings.Cut(os.Getenv(childVariable), ":"); ok {
		if err := children[what](path); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child starts one. Its standard input is open until stdin is closed.
func child(t *testing.T, what, path string, changed ...func(*exec.Cmd)) (cmd *exec.Cmd, stdin io.Closer, lines *bufio.Scanner) {
	t.Helper()
	if children[what] == nil {
		t.Fatalf("no child does %q", what)
	}
	cmd = exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"="+what+":"+path)
	cmd.Stderr = os.Stderr
	for _, change := range changed {
		change(cmd)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, in, bufio.NewScanner(out)
}

// says reads the child's next line.
func says(t *testing.T, lines *bufio.Scanner, want string) {
	t.Helper()
	if !lines.Scan() || lines.Text() != want {
		t.Fatalf("the child says %q, not %q (%v)", lines.Text(), want, lines.Err())
	}
}

func crashRecord(round string, i int) *Record {
	r := record(fmt.Sprintf("r%s-%d.example", round, i))
	r.Text = []byte(strings.Repeat("x", i*37%3000))
	return r
}

// crashOptions leave room for all that a fast disk takes in a hundred rounds.
func crashOptions() Options {
	o := testOptions()
	o.MaxSize = 4 << 30
	return o
}

// writeForEver writes batches, and says so after each.
func writeForEver(path string) error {
	s, err := Open(path, crashOptions())
	if err != nil {
		return err
	}
	round := os.Getenv("ROUND")
	for i := 0; ; {
		n := 1 + rand.IntN(30)
		var ops []Op
		for j := range n {
			ops = append(ops, Op{Put: crashRecord(round, i+j)})
		}
		// And one that changes with every commit.
		last := record("last.example")
		last.ID, last.Failures = round, uint32(i)
		result, err := s.Write(append(ops, Op{Put: last}))
		if err != nil {
			return err
		}
		if len(result.Refused) > 0 {
			return fmt.Errorf("no room for %q", result.Refused)
		}
		i += n
		fmt.Println(i)
	}
}

func TestWhatAWriteAcknowledgedSurvivesKill9AtAnyMoment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	for round := range 100 {
		name := fmt.Sprint(round)
		cmd, _, lines := child(t, "write for ever", path, func(c *exec.Cmd) { c.Env = append(c.Env, "ROUND="+name) })
		acknowledged := 0
		kill := make(chan struct{})
		go func() { // at a random moment after the first commit, also in the middle of one
			<-kill
			time.AfterFunc(time.Duration(rand.IntN(40_000))*time.Microsecond, func() { cmd.Process.Kill() })
		}()
		for lines.Scan() {
			if acknowledged == 0 {
				close(kill)
			}
			if _, err := fmt.Sscan(lines.Text(), &acknowledged); err != nil {
				t.Fatal(lines.Text())
			}
		}
		cmd.Wait()
		if acknowledged == 0 {
			t.Fatalf("round %d: the child wrote nothing", round)
		}
		s := openAt(t, path, crashOptions())
		if s.Stats().Salvage != nil {
			t.Fatalf("round %d: %+v", round, s.Stats().Salvage)
		}
		for i := range acknowledged {
			mustHold(t, s, crashRecord(name, i))
		}
		if last, err := s.Get("last.example"); err != nil || last.ID != name {
			t.Fatalf("round %d: %+v, %v", round, last, err)
		}
		if round%10 == 9 {
			checkStore(t, s)
		}
		closeStore(t, s)
	}
}

// fillTheDisk writes until no file may grow, then goes on with more room.
func fillTheDisk(path string) error {
	signal.Ignore(unix.SIGXFSZ)
	s, err := Open(path, testOptions())
	if err != nil {
		return err
	}
	defer s.Close()
	limit := func(n uint64) error {
		return unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: n, Max: unix.RLIM_INFINITY})
	}
	if err := limit(300_000); err != nil {
		return err
	}
	n := 0
	for ; n < 1000; n++ {
		if _, err = s.Write(puts(crashRecord("a", n))); err != nil {
			break
		}
	}
	if err == nil || unreadable(err) {
		return fmt.Errorf("a full disk: %v", err)
	}
	// It is usable: it answers, and can still say no.
	for i := range n {
		if _, err := s.Get(crashRecord("a", i).Domain); err != nil {
			return err
		}
	}
	if _, err := s.Get(crashRecord("a", n).Domain); err != ErrNotFound {
		return fmt.Errorf("what was not written: %v", err)
	}
	large := record("large.example")
	large.Text = make([]byte, 400_000)
	if _, err := s.Write(puts(large)); err == nil {
		return fmt.Errorf("400 KB went onto a full disk")
	}
	if err := limit(unix.RLIM_INFINITY); err != nil {
		return err
	}
	if _, err := s.Write(puts(crashRecord("a", n), crashRecord("a", n+1))); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	fmt.Println(n + 2)
	return nil
}

func TestAFullDiskIsAnErrorAndTheStoreStaysUsable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	_, _, lines := child(t, "fill the disk", path)
	if !lines.Scan() {
		t.Fatal("the child says nothing")
	}
	n := 0
	if _, err := fmt.Sscan(lines.Text(), &n); err != nil || n < 10 {
		t.Fatal(lines.Text())
	}
	for lines.Scan() { // until it has closed the store
	}
	s := openAt(t, path, testOptions())
	for i := range n {
		mustHold(t, s, crashRecord("a", i))
	}
	if st := s.Stats(); st.Salvage != nil || st.Policies() != int64(n) {
		t.Errorf("%+v", st)
	}
	checkStore(t, s)
}

// openOnAFullDisk opens a damaged copy of the file at path on a disk of its own
// that has no room for another, and then again when it has.
func openOnAFullDisk(path string) error {
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
	damaged := append(make([]byte, 4096), whole[4096:]...) // the first meta page is lost
	if err := errors.Join(os.WriteFile(cached, damaged, 0o600), os.WriteFile(cached+asideSuffix+"1", []byte("old"), 0o600)); err != nil {
		return err
	}
	if err := os.WriteFile(junk, make([]byte, 4<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("4 MiB go onto a full disk: %v", err)
	}
	s, err := Open(cached, testOptions())
	if err != nil {
		return fmt.Errorf("on a full disk: %w", err)
	}
	if r := s.Stats().Salvage; r == nil || r.MovedTo != "" || r.Recovered != damagedPolicies {
		return fmt.Errorf("on a full disk: %+v", r)
	}
	var hit Hit
	for i := range damagedPolicies {
		if err := s.Lookup([]byte(victim(i).Domain), &hit); err != nil {
			return err
		}
	}
	if _, err := s.Write(puts(record("new.example"))); err != nil {
		return err
	}
	if err := s.Lookup([]byte("new.example"), &hit); err != nil {
		return err
	}
	if _, _, err := s.Due(0, at(2*day), 10); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	if left, err := os.ReadFile(cached); err != nil || !bytes.Equal(left, damaged) {
		return fmt.Errorf("the damaged file is not as it was: %v", err)
	}
	if err := os.Remove(junk); err != nil {
		return err
	}
	if s, err = Open(cached, testOptions()); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	r := s.Stats().Salvage
	if err := s.Close(); err != nil || r == nil || r.MovedTo == "" || r.Recovered != damagedPolicies {
		return fmt.Errorf("with room again: %+v, %v", r, err)
	}
	fmt.Println("done")
	return nil
}

func TestADamagedFileOnADiskWithoutRoomIsAnsweredFrom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "whole.db")
	if err := os.WriteFile(path, wholeFile(t), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, lines := child(t, "open on a full", path, func(c *exec.Cmd) {
		// Mounts of its own, so that it may have a small disk.
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if os.Getuid() != 0 {
			c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
	})
	says(t, lines, "done")
}

func openUnreadable(path string) error {
	var log strings.Builder
	o := testOptions()
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	s, err := Open(path, o)
	if err != nil {
		return err
	}
	defer s.Close()
	report := s.Stats().Salvage
	if report == nil {
		return fmt.Errorf("the file was read")
	}
	if !report.Unopened || !strings.Contains(report.Advice(), "chown "+report.MovedTo+" to its user") ||
		strings.Contains(log.String(), "is damaged") || !strings.Contains(log.String(), `lost="not known"`) ||
		!strings.Contains(log.String(), `next="the file may be whole: stop the daemon`) {
		return fmt.Errorf("%+v, and the log:\n%s", report, log.String())
	}
	if _, err := s.Write(puts(record("a.example"))); err != nil {
		return err
	}
	_, err = os.Stat(report.MovedTo)
	return err
}

func TestAFileThatMayNotBeReadIsMovedAside(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "cache") // t.TempDir's parents are for us alone
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "cache.db")
	if err := os.WriteFile(path, wholeFile(t), 0); err != nil {
		t.Fatal(err)
	}
	cmd, _, lines := child(t, "open unreadable", path, func(c *exec.Cmd) {
		if os.Getuid() == 0 { // who may read everything
			const nobody = 65534
			os.Chown(dir, nobody, nobody)
			// The test binary lies in a folder that nobody may not enter.
			self, err := os.ReadFile("/proc/self/exe")
			if err == nil {
				c.Path = filepath.Join(dir, "child")
				err = os.WriteFile(c.Path, self, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			c.Dir = dir
		}
	})
	for lines.Scan() {
		t.Error(lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func hold(open func() (*Store, error)) error {
	s, err := open()
	if err != nil {
		return err
	}
	fmt.Println("open")
	io.Copy(io.Discard, os.Stdin)
	return s.Close()
}

func holdOpen(path string) error {
	return hold(func() (*Store, error) { return Open(path, testOptions()) })
}

func holdToRead(path string) error {
	return hold(func() (*Store, error) { return OpenReadOnly(path) })
}

func openSecond(path string) error {
	_, err := Open(path, testOptions())
	fmt.Println(err)
	return nil
}
