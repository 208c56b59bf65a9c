package socketmap_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

// A tape is a connection on which the pieces arrive, one a read, and then the
// end. It keeps what is written.
type tape struct {
	pieces  [][]byte
	written bytes.Buffer
	ended   chan struct{}
}

func (c *tape) Read(p []byte) (int, error) {
	if len(c.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.pieces[0])
	if c.pieces[0] = c.pieces[0][n:]; len(c.pieces[0]) == 0 {
		c.pieces = c.pieces[1:]
	}
	return n, nil
}

func (c *tape) Write(p []byte) (int, error)      { return c.written.Write(p) }
func (c *tape) Close() error                     { close(c.ended); return nil }
func (c *tape) LocalAddr() net.Addr              { return nil }
func (c *tape) RemoteAddr() net.Addr             { return nil }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }

// play serves the tape to its end.
func play(t *tape) socketmap.Stats {
	t.ended = make(chan struct{})
	s := socketmap.NewServer(echo, socketmap.Options{})
	l := newPipeListener()
	go s.Serve(l)
	l.conns <- t
	<-t.ended
	s.Shutdown(context.Background())
	return s.Stats()
}

// cut cuts b into pieces of the sizes that cuts says, over and over.
func cut(b, cuts []byte) [][]byte {
	var pieces [][]byte
	for i := 0; len(b) > 0; i++ {
		n := len(b)
		if len(cuts) > 0 {
			c := int(cuts[i%len(cuts)])
			n = min(n, 1+c*c/16) // up to 4 KiB
		}
		pieces = append(pieces, b[:n])
		b = b[n:]
	}
	return pieces
}

var (
	wholeHeader = regexp.MustCompile(`^(0|[1-9][0-9]*):`)
	onlyDigits  = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)
)

// expected is the plain model: the whole stream at once, one pattern a
// request. It returns the replies, and whether the stream breaks the rules.
func expected(stream string) (replies string, malformed bool) {
	for stream != "" {
		m := wholeHeader.FindStringSubmatch(stream)
		if m == nil {
			return replies, !onlyDigits.MatchString(stream) || tooLong(stream)
		}
		if tooLong(m[1]) {
			return replies, true
		}
		n, _ := strconv.Atoi(m[1])
		rest := stream[len(m[0]):]
		if len(rest) <= n {
			return replies, false // the end came too early, and that is all
		}
		if rest[n] != ',' {
			return replies, true
		}
		replies += frame(expectedReply(rest[:n]))
		stream = rest[n+1:]
	}
	return replies, false
}

func tooLong(digits string) bool {
	n, err := strconv.Atoi(digits)
	return err != nil || n > socketmap.MaxRead
}

func expectedReply(request string) string {
	mapName, key, ok := strings.Cut(request, " ")
	switch {
	case len(request) > socketmap.MaxRequest:
		return "NOTFOUND "
	case !ok:
		return replyNoSpace
	}
	return "OK " + mapName + "|" + key
}

func checkStream(t *testing.T, stream, cuts []byte) {
	t.Helper()
	in := &tape{pieces: cut(stream, cuts)}
	stats := play(in)
	replies, malformed := expected(string(stream))
	if got := in.written.String(); got != replies {
		t.Errorf("stream %.200q in pieces %v:\ngot  %.300q\nwant %.300q", stream, cuts, got, replies)
	}
	if got := stats.Malformed == 1; got != malformed {
		t.Errorf("stream %.200q in pieces %v: malformed %v, want %v", stream, cuts, got, malformed)
	}
	if stats.Panics > 0 {
		t.Error("a panic")
	}
}

func streams() []string {
	long := strings.Repeat("k", socketmap.MaxRequest-len("postfix "))
	return []string{
		"",
		request("postfix", "example.com"),
		strings.Repeat(request("postfix", "example.com"), 300),
		request("postfix", long) + request("postfix", "a"),
		request("postfix", long+"k") + request("postfix", "a"),
		frame(strings.Repeat("k", socketmap.MaxRead)) + request("postfix", "a"),
		request("postfix", "a") + fmt.Sprint(socketmap.MaxRead+1, ":"),
		request("postfix", long)[:5000],
		frame(strings.Repeat("k", socketmap.MaxRead))[:50000],
		frame(strings.Repeat("k", 20000))[:20006] + "!",
		"0:,0:,7:postfix,",
		"00:,", "01:a,", ":", "1", "1:", "1:a", "1:a;", "65536", "65537", "-1:a,",
		"\x16\x03\x01\x02\x00\x01\x00",
		"GET / HTTP/1.1\r\n\r\n",
	}
}

func TestASplitStreamGetsTheSameReplies(t *testing.T) {
	for _, stream := range streams() {
		for _, cuts := range [][]byte{nil, {0}, {1, 0, 2}, {254, 7}, {255}} {
			checkStream(t, []byte(stream), cuts)
		}
	}
}

// expand makes long streams of short ones, which the fuzzer finds more easily:
// each byte 0xFE stands for 4,096 letters.
func expand(b []byte) []byte {
	const most = 50
	return bytes.Replace(b, []byte{0xFE}, bytes.Repeat([]byte{'k'}, 4096), most)
}

// Any stream of bytes, in any pieces, is answered as the plain model says.
func FuzzRequest(f *testing.F) {
	for _, s := range streams() {
		if len(s) < 100 { // the fuzzer is slow with long ones; expand makes them
			f.Add([]byte(s), []byte{3, 0, 200})
		}
	}
	f.Add([]byte("8200:postfix \xFE\xFE,12200:postfix \xFE\xFE\xFE,7:a b c d,"), []byte{100, 9})
	f.Add([]byte("65536:\xFE\xFE\xFE\xFE\xFE\xFE\xFE\xFE\xFE\xFE\xFE\xFE\xFE\xFE\xFE\xFE,7:a b c d,"), []byte{255, 0})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		checkStream(t, expand(stream), cuts)
	})
}
