package collect_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/collect"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// A pipe is a socket for tests: it yields what is sent to it.
type pipe struct {
	net.Conn
	in    chan []byte
	ended chan struct{}
	once  sync.Once
}

func newPipe() *pipe { return &pipe{in: make(chan []byte), ended: make(chan struct{})} }

func (p *pipe) Read(b []byte) (int, error) {
	select {
	case d := <-p.in:
		if d == nil {
			return 0, errors.New("as the test wants it")
		}
		return copy(b, d), nil
	case <-p.ended:
		return 0, net.ErrClosed
	}
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.ended) })
	return nil
}

// A sink takes batches as write says.
type sink struct {
	mu      sync.Mutex
	write   func(*store.Batch) error // nil: they are taken
	batches []int                    // sessions of those taken
	days    []tlsrpt.Day
	at      []time.Time
}

func (s *sink) Write(b *store.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.write != nil {
		if err := s.write(b); err != nil {
			return err
		}
	}
	s.batches, s.days, s.at = append(s.batches, b.Sessions()), append(s.days, b.Day()), append(s.at, time.Now())
	return nil
}

type lab struct {
	*collect.Collector
	pipe *pipe
	sink sink
	log  bytes.Buffer
	stop func()
}

func options(log io.Writer) collect.Options {
	return collect.Options{Log: slog.New(slog.NewTextHandler(log, nil)), Now: time.Now, Policy: policyOf}
}

// newLab runs a collector on fakes until the test ends. It is for a bubble of synctest.
func newLab(t *testing.T, queueLength int) *lab {
	l := &lab{pipe: newPipe()}
	l.Collector = collect.New(&l.sink, options(&l.log))
	l.stop = run(t, l.Collector, func(ctx context.Context) { l.Datagrams(ctx, l.pipe, queueLength) })
	return l
}

// run runs a collector and an intake until stop, or until the test ends.
func run(t *testing.T, c *collect.Collector, intake func(context.Context)) (stop func()) {
	taking, stopTaking := context.WithCancel(t.Context())
	running, stopRunning := context.WithCancel(t.Context())
	var taken, ran sync.WaitGroup
	taken.Go(func() { intake(taking) })
	ran.Go(func() { c.Run(running) })
	stop = func() { stopTaking(); taken.Wait(); stopRunning(); ran.Wait() }
	t.Cleanup(stop)
	return stop
}

func (l *lab) send(n int, datagram string) {
	for range n {
		l.pipe.in <- []byte(datagram)
	}
	synctest.Wait()
}

func TestABatchIsWrittenEachSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 0)
		begin := time.Now()
		l.send(3, success)
		time.Sleep(1500 * time.Millisecond)
		l.send(2, failing(201, ""))
		time.Sleep(5 * time.Second)
		l.send(1, success)
		l.stop()
		if got := fmt.Sprint(l.sink.batches); got != "[3 2 1]" || l.sink.at[0].Sub(begin) != time.Second || l.sink.at[1].Sub(begin) != 2*time.Second {
			t.Error(got, l.sink.at)
		}
		if s := l.Stats(); s.From[collect.Postfix] != (collect.Count{Received: 6, Successful: 4, Failed: 2}) || s.Batches != 3 || s.Err != nil {
			t.Errorf("%+v", s)
		}
	})
}

func TestABatchIsOfOneDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // a bubble begins at midnight of UTC
		l := newLab(t, 0)
		l.send(1, success)
		time.Sleep(12 * time.Hour)
		l.sink.mu.Lock()
		l.sink.write = func(*store.Batch) error { return errors.New("no space left on device") }
		l.sink.mu.Unlock()
		l.send(1, success)
		time.Sleep(24 * time.Hour)
		l.send(5, success) // no place for another day's sessions
		time.Sleep(2 * time.Second)
		l.sink.mu.Lock()
		l.sink.write = nil
		l.sink.mu.Unlock()
		time.Sleep(2 * time.Second)
		l.send(2, success)
		time.Sleep(2 * time.Second)
		l.stop()
		if got := fmt.Sprint(l.sink.batches, l.sink.days); got != "[1 1 2] [2000-01-01 2000-01-01 2000-01-02]" || l.Stats().Dropped["batch"] != 5 {
			t.Error(got, l.Stats())
		}
	})
}

func TestWhileTheDiskTakesNothingSessionsAreKeptUpToABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 0)
		full := errors.New("no space left on device")
		tried := 0
		l.sink.write = func(*store.Batch) error { tried++; return full } // under the sink's mutex
		l.send(2, success)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if s := l.Stats(); s.Err != full || s.Dropped["batch"] != 0 || tried != 10 {
			t.Errorf("%+v, tried %d times", s, tried)
		}
		large := strings.Replace(success, `"mode: enforce",`, strings.Repeat(`"mx: `+strings.Repeat("x", 250)+`",`, 200), 1)
		for i := range 200 { // 50 KB each, and another policy each
			l.send(1, strings.ReplaceAll(large, "604800", strconv.Itoa(i)))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		dropped := l.Stats().Dropped["batch"]
		if dropped == 0 || dropped > 150 || tried > 15 {
			t.Errorf("dropped %d, tried %d times", dropped, tried)
		}
		l.sink.mu.Lock()
		l.sink.write = nil
		l.sink.mu.Unlock()
		l.send(1, success) // still no room: it comes before the next attempt
		time.Sleep(2 * time.Second)
		l.send(1, success)
		time.Sleep(2 * time.Second)
		l.stop()
		if got := fmt.Sprint(l.sink.batches); got != fmt.Sprintf("[%d 1]", 202-dropped) || l.Stats().Err != nil {
			t.Error(got, dropped, l.Stats())
		}
		if log := l.log.String(); strings.Count(log, "no space left") != 1 || strings.Count(log, "recorded again") != 1 {
			t.Error(log)
		}
	})
}

// The consumer hangs on the disk: the reader goes on, and drops what comes last.
func TestAFullRingDropsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 0)
		hang := make(chan struct{})
		l.sink.write = func(*store.Batch) error { <-hang; return nil }
		l.send(1, success)
		time.Sleep(2 * time.Second)
		const n = 100 // of 200 KB each
		large := strings.Repeat(" ", 200_000)
		for i := range n {
			l.send(1, strings.Replace(success, "good.test", fmt.Sprintf("d%d.test", i), 1)+large)
		}
		s := l.Stats()
		if dropped := s.Dropped["ring"]; dropped < 40 || dropped > 60 || s.RingSize > s.MaxRing || s.MaxRing != 10<<20 {
			t.Errorf("%+v", s)
		}
		close(hang)
		time.Sleep(2 * time.Second)
		l.stop()
		if got := l.Stats(); got.From[collect.Postfix].Successful+got.Dropped["ring"] != n+1 || got.Dropped["ring"] != s.Dropped["ring"] || got.RingSize != 0 {
			t.Errorf("%+v", got)
		}
	})
}

func TestAPanicEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 0)
		l.sink.write = func(*store.Batch) error { panic("as the test wants it") }
		l.send(1, success)
		time.Sleep(2500 * time.Millisecond)
		l.sink.mu.Lock()
		l.sink.write = nil
		l.sink.mu.Unlock()
		l.send(1, success)
		time.Sleep(2 * time.Second)
		l.stop()
		if s := l.Stats(); s.Panics != 2 || fmt.Sprint(l.sink.batches) != "[2]" || strings.Count(l.log.String(), "please report it") != 1 {
			t.Errorf("%+v, %v, %s", s, l.sink.batches, &l.log)
		}
	})
}

func TestAnErrorOfTheSocketIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 0)
		l.pipe.in <- nil
		l.pipe.in <- nil
		l.send(1, success)
		time.Sleep(2 * time.Second)
		if s := l.Stats(); s.From[collect.Postfix].Successful != 1 || strings.Count(l.log.String(), "cannot be received") != 1 {
			t.Errorf("%+v, %s", s, &l.log)
		}
	})
}

func TestAShortQueueOfTheKernelIsAWarning(t *testing.T) {
	for n, want := range map[int]bool{10: true, 127: true, 128: false, 512: false, 0: false} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t, n)
			l.stop()
			if got := strings.Contains(l.log.String(), "max_dgram_qlen="+strconv.Itoa(n)); got != want {
				t.Errorf("%d: %s", n, &l.log)
			}
		})
	}
	if _, err := os.Stat("/proc/sys/net/unix/max_dgram_qlen"); err == nil && collect.QueueLength() == 0 {
		t.Error("the kernel's setting is not read")
	}
}

// Postfix's way: a socket for each datagram.
func send(t testing.TB, path string, datagrams ...string) {
	t.Helper()
	for _, d := range datagrams {
		c, err := net.Dial("unixgram", path)
		if err == nil {
			_ = c.(*net.UnixConn).SetWriteBuffer(1 << 20)
			_, err = io.WriteString(c, d)
			_ = c.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSessionsComeFromTheSocketIntoTheStore(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tlsrpt.sock")
	conn, err := endpoint.ListenDatagrams(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(filepath.Join(dir, "reports.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := collect.New(s, options(io.Discard))
	stop := run(t, c, func(ctx context.Context) { c.Datagrams(ctx, conn, 0) })
	send(t, path, success, newer, failing(205, "self-signed_certificate"), "", "x", success+strings.Repeat(" ", 256<<10))
	for deadline := time.Now().Add(30 * time.Second); c.Stats().From[collect.Postfix].Received < 6; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", c.Stats())
		}
	}
	stop()
	if err := s.Merge(); err != nil {
		t.Fatal(err)
	}
	days, err := s.Days()
	if err != nil || len(days) != 1 {
		t.Fatal(days, err)
	}
	d, err := s.Load(days[0], "good.test")
	if err != nil || len(d.Policies) != 1 || d.Policies[0].Successful != 2 || d.Policies[0].Failed != 1 ||
		d.Policies[0].Details[0].Failure != failure(tlsrpt.CertificateNotTrusted, "self-signed_certificate") {
		t.Errorf("%+v, %v", d, err)
	}
	if st := c.Stats(); st.Dropped["malformed"] != 2 || st.Dropped["too-long"] != 1 {
		t.Errorf("%+v", st)
	}
}

func TestTheSocketIsForPostfixAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sts-tlsmap-tlsrpt", "tlsrpt.sock")
	if _, err := user.LookupGroup(collect.Group); err == nil && os.Geteuid() != 0 {
		t.Skip("only root may give files to the group of Postfix, which is here")
	}
	defer syscall.Umask(syscall.Umask(0o027))
	conn, err := collect.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	gid := uint32(os.Getgid())
	if g, err := user.LookupGroup(collect.Group); err == nil {
		n, _ := strconv.Atoi(g.Gid)
		gid = uint32(n)
	}
	for name, mode := range map[string]os.FileMode{filepath.Dir(path): os.ModeDir | 0o710, path: os.ModeSocket | 0o660} {
		info, err := os.Stat(name)
		if err != nil || info.Mode() != mode || info.Sys().(*syscall.Stat_t).Gid != gid {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if _, err := collect.Listen(path); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("a socket in use: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if conn, err = collect.Listen(path); err != nil {
		t.Fatalf("the socket of a dead daemon: %v", err)
	}
	conn.Close()
	if err := errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := collect.Listen(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: %v", err)
	}
}

func TestASocketOfSystemdMustTakeDatagrams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	file, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	passed, err := net.FilePacketConn(file)
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	if c, err := collect.Passed(passed); err != nil || c == nil {
		t.Error(err)
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	if _, err := collect.Passed(udp); err == nil {
		t.Error("UDP is taken")
	}
}
