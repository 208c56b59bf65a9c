package socketmap_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

const (
	replyNoSpace   = "PERM a request is a map name, a space and a key"
	replyPanic     = "TEMP internal error, see the log"
	replyEmpty     = "TEMP internal error, no reply"
	replyOversized = "TEMP the reply is longer than 100,000 bytes"
	writeBuffer    = 4 << 10
)

func TestAnswersRequestsInOrder(t *testing.T) {
	c := startLab(t, echo).dial()
	for i := range 100 {
		c.ask(fmt.Sprint("d", i, ".example"))
	}
}

func TestAnswersPipelinedRequestsInOrder(t *testing.T) {
	c := startLab(t, echo).dial()
	var all strings.Builder
	const n = 300
	for i := range n {
		all.WriteString(request("postfix", strings.Repeat("x", i%700)+fmt.Sprint(i)))
	}
	go io.WriteString(c, all.String())
	for i := range n {
		c.want("OK postfix|" + strings.Repeat("x", i%700) + fmt.Sprint(i))
	}
}

func TestAnswersARequestThatComesByteByByte(t *testing.T) {
	c := startLab(t, echo).dial()
	if err := c.Conn.(*net.TCPConn).SetNoDelay(true); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, b := range []byte(request("postfix", "example.com")) {
			c.send(string(b))
		}
		c.want("OK postfix|example.com")
	}
}

// Exim's readsocket shuts its sending side and reads to the end of file.
func TestAHalfClosedClientIsAnsweredAndThenClosed(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			l := startLab(t, echo)
			c := l.dial()
			if network == "unix" {
				c = l.dialUnix()
			}
			c.send(request("exim", "one.example") + request("exim", "two.example"))
			if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c.r)
			if err != nil {
				t.Fatal(err)
			}
			if want := frame("OK exim|one.example") + frame("OK exim|two.example"); string(got) != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// dialUnix serves a unix socket too, and connects to it.
func (l *lab) dialUnix() *testClient {
	l.t.Helper()
	at := endpoint.Endpoint{Network: "unix", Address: filepath.Join(l.t.TempDir(), "map.sock")}
	listener, err := endpoint.Listen(at, 0o666)
	if err != nil {
		l.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- l.Serve(listener) }()
	l.t.Cleanup(func() {
		listener.Close()
		receive(l.t, "Serve returns when its listener is closed", served)
	})
	nc, err := net.Dial("unix", at.Address)
	if err != nil {
		l.t.Fatal(err)
	}
	return newTestClient(l.t, nc)
}

func TestServesSeveralListenersAtOnce(t *testing.T) {
	l := startLab(t, echo)
	a, b := l.dial(), l.dialUnix()
	for range 3 {
		a.ask("tcp.example")
		b.ask("unix.example")
	}
	if stats := l.Stats(); stats.Open != 2 || stats.Accepted != 2 || stats.Requests != 6 {
		t.Errorf("stats %+v, want 2 open, 2 accepted, 6 requests", stats)
	}
}

func TestRequests(t *testing.T) {
	long := strings.Repeat("k", socketmap.MaxRequest-len("postfix "))
	for _, test := range []struct{ name, request, reply string }{
		{"the longest request that is looked up", "postfix " + long, "OK postfix|" + long},
		{"one byte more is NOTFOUND", "postfix " + long + "k", "NOTFOUND "},
		{"the longest request that is read is NOTFOUND", strings.Repeat("k", socketmap.MaxRead), "NOTFOUND "},
		{"a request without a space is PERM", "postfix", replyNoSpace},
		{"an empty request is PERM", "", replyNoSpace},
		{"an empty key is the handler's to judge", "postfix ", "OK postfix|"},
		{"an empty map name is the handler's to judge", " key", "OK |key"},
		{"the first space divides", "postfix a b", "OK postfix|a b"},
		{"bytes are bytes", "postfix \x00\xff\r\n,:", "OK postfix|\x00\xff\r\n,:"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := startLab(t, echo).dial()
			for range 2 { // the connection goes on
				c.send(frame(test.request))
				c.want(test.reply)
			}
			c.ask("example.com")
		})
	}
}

func TestMalformedInputClosesThatConnectionOnly(t *testing.T) {
	for _, test := range []struct{ name, bytes string }{
		{"no digits", ":,"},
		{"a leading zero", "011:postfix abc,"},
		{"two zeros", "00:,"},
		{"a sign", "+3:a b,"},
		{"a space before the length", " 3:a b,"},
		{"no comma", "3:a b;"},
		{"a line", "postfix example.com\r\n"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00"},
		{"a request too long to read, before its body", fmt.Sprint(socketmap.MaxRead+1, ":")},
		{"a length beyond all measure, before its colon", "99999999999999999999999999999999"},
		{"no comma after a request that is not kept", frame(strings.Repeat("k", socketmap.MaxRequest+1))[:socketmap.MaxRequest+7] + ";"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := startLab(t, echo)
			other, c := l.dial(), l.dial()
			other.ask("before.example")
			c.ask("first.example")
			c.send(request("postfix", "good.example") + test.bytes)
			c.want("OK postfix|good.example") // what came before is answered
			c.wantEnd()
			other.ask("after.example")
			until(t, "it is counted", func() bool { return l.Stats().Malformed == 1 })
			if n := l.log.count("not a socketmap request"); n != 1 {
				t.Errorf("%d log lines about it, want 1", n)
			}
		})
	}
}

func TestTheLogShowsHowMalformedInputBegins(t *testing.T) {
	l := startLab(t, echo)
	c := l.dial()
	c.send(request("postfix", "good.example") + "GET / HTTP/1.1\r\n" + strings.Repeat("x", 200))
	c.want("OK postfix|good.example")
	c.wantEnd()
	until(t, "it is logged", func() bool {
		return l.log.count(`it begins with \"GET / HTTP/1.1`) == 1 || l.log.count("GET / HTTP/1.1") == 1
	})
	if strings.Contains(l.log.String(), strings.Repeat("x", 40)) {
		t.Errorf("the log shows too much: %s", l.log)
	}
}

func TestLogLinesAboutMalformedInputAreLimited(t *testing.T) {
	l := startLab(t, echo)
	for range 20 {
		c := l.dial()
		c.send("x")
		c.wantEnd()
	}
	until(t, "all are counted", func() bool { return l.Stats().Malformed == 20 })
	if n := l.log.count("not a socketmap request"); n != 1 {
		t.Errorf("%d log lines, want 1", n)
	}
}

func TestRepliesOfEveryLengthAreFramed(t *testing.T) {
	c := startLab(t, handlerFunc(func(_ context.Context, dst, _, key []byte) []byte {
		var n int
		fmt.Sscan(string(key), &n)
		return append(dst, bytes.Repeat([]byte{'r'}, n)...)
	})).dial()
	for _, n := range []int{1, 9, 10, 99, 100, 999, 1000, writeBuffer - 8, writeBuffer, 9_999, 10_000, 99_999, socketmap.MaxReply} {
		for pipelined := range 3 {
			c.send(strings.Repeat(request("postfix", fmt.Sprint(n)), pipelined+1))
			for range pipelined + 1 {
				c.want(strings.Repeat("r", n))
			}
		}
	}
}

func TestRepliesThatCannotBeSentAreTEMP(t *testing.T) {
	for _, test := range []struct {
		name  string
		reply []byte
		want  string
	}{
		{"longer than the MTA reads", make([]byte, socketmap.MaxReply+1), replyOversized},
		{"empty", nil, replyEmpty},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := startLab(t, handlerFunc(func(_ context.Context, dst, _, key []byte) []byte {
				if string(key) == "odd.example" {
					return append(dst, test.reply...)
				}
				return echoReply(dst, []byte("postfix"), key)
			})).dial()
			c.send(request("postfix", "odd.example"))
			c.want(test.want)
			c.ask("even.example")
			// and between others
			c.send(request("postfix", "a") + request("postfix", "odd.example") + request("postfix", "b"))
			c.want("OK postfix|a")
			c.want(test.want)
			c.want("OK postfix|b")
		})
	}
}

func TestAPanicIsAnsweredTEMPAndTheConnectionGoesOn(t *testing.T) {
	l := startLab(t, handlerFunc(func(_ context.Context, dst, mapName, key []byte) []byte {
		dst = echoReply(dst, mapName, key)
		if string(key) == "evil.example" {
			panic("the roof is on fire")
		}
		return dst
	}))
	c := l.dial()
	c.ask("a.example")
	c.send(request("postfix", "b.example") + request("postfix", "evil.example") + request("postfix", "c.example"))
	c.want("OK postfix|b.example")
	c.want(replyPanic)
	c.want("OK postfix|c.example")
	if l.Stats().Panics != 1 {
		t.Errorf("stats %+v, want one panic", l.Stats())
	}
	for _, s := range []string{"level=ERROR", "the roof is on fire", "evil.example", "server_test.go"} {
		if l.log.count(s) == 0 {
			t.Errorf("the log does not say %q: %s", s, l.log)
		}
	}
}

func TestASlowLookupDelaysNoOtherConnection(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	l := startLab(t, slowHandler(arrived, goOn))
	slow := l.dial()
	slow.send(request("postfix", "slow.example"))
	receive(t, "the slow lookup begins", arrived)
	for i := range 20 {
		c := l.dial()
		c.ask(fmt.Sprint("a", i))
		c.ask(fmt.Sprint("b", i))
	}
	close(goOn)
	slow.want("OK postfix|slow.example")
}

// slowHandler is echo, but lookups of slow.example say so on arrived and wait
// for goOn or the end of their context.
func slowHandler(arrived chan<- struct{}, goOn <-chan struct{}) socketmap.Handler {
	return handlerFunc(func(ctx context.Context, dst, mapName, key []byte) []byte {
		if string(key) == "slow.example" {
			arrived <- struct{}{}
			select {
			case <-goOn:
			case <-ctx.Done():
				return append(dst, "TEMP cancelled"...)
			}
		}
		return echoReply(dst, mapName, key)
	})
}

func TestASlowLookupDoesNotHoldBackTheRepliesBeforeIt(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	l := startLab(t, slowHandler(arrived, goOn))
	c := l.dial()
	for round := range 3 {
		c.send(request("postfix", "a") + request("postfix", "b") + request("postfix", "slow.example") +
			request("postfix", "c") + request("postfix", "d"))
		receive(t, "the slow lookup begins", arrived)
		c.want("OK postfix|a")
		c.want("OK postfix|b")
		goOn <- struct{}{}
		c.want("OK postfix|slow.example")
		c.want("OK postfix|c")
		c.want("OK postfix|d")
		c.ask(fmt.Sprint(round))
	}
}

// A failingListener fails to accept a few times, and then works.
type failingListener struct {
	net.Listener
	fails chan error
}

func (l *failingListener) Accept() (net.Conn, error) {
	select {
	case err := <-l.fails:
		return nil, err
	default:
		return l.Listener.Accept()
	}
}

func TestAcceptErrorsEndNothing(t *testing.T) {
	l := startLab(t, echo)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	failing := &failingListener{inner, make(chan error, 3)}
	for range 3 {
		failing.fails <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	served := make(chan error, 1)
	go func() { served <- l.Serve(failing) }()
	nc, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	newTestClient(t, nc).ask("example.com")
	if n := l.log.count("cannot accept"); n != 1 {
		t.Errorf("%d log lines, want 1", n)
	}
	inner.Close()
	if err := receive(t, "Serve returns", served); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a listener that someone else closed: %v, want net.ErrClosed", err)
	}
}

func TestALookupAllocatesNothing(t *testing.T) {
	c := startLab(t, echo).dial()
	ask := []byte(request("postfix", "example.com"))
	want := []byte(frame("OK postfix|example.com"))
	got := make([]byte, len(want))
	for _, pipelined := range []int{1, 10} {
		asks := bytes.Repeat(ask, pipelined)
		n := testing.AllocsPerRun(200, func() {
			if _, err := c.Write(asks); err != nil {
				t.Fatal(err)
			}
			for range pipelined {
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("got %q, %v", got, err)
				}
			}
		})
		if n != 0 {
			t.Errorf("%v allocations for %d requests, want none", n, pipelined)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	s := socketmap.NewServer(echo, socketmap.Options{})
	l, err := endpoint.Listen(endpoint.Endpoint{Network: "tcp", Address: "127.0.0.1:0"}, 0)
	if err != nil {
		b.Fatal(err)
	}
	go s.Serve(l)
	defer s.Shutdown(context.Background())
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	ask := []byte(request("postfix", "example.com"))
	r := bufio.NewReader(nc)
	b.ReportAllocs()
	for b.Loop() {
		nc.Write(ask)
		if _, err := r.ReadSlice(','); err != nil {
			b.Fatal(err)
		}
	}
}
