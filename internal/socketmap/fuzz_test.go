package socketmap

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A tape is a connection on which the pieces arrive, one a read, and then the
// end. It keeps what is written.
type tape struct {
	pieces  [][]byte
	written bytes.Buffer
	writes  int
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

func (c *tape) Write(p []byte) (int, error) {
	c.writes++
	return c.written.Write(p)
}

func (c *tape) Close() error                     { return nil }
func (c *tape) LocalAddr() net.Addr              { return nil }
func (c *tape) RemoteAddr() net.Addr             { return nil }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }

// play serves the tape to its end.
func play(t *tape) (*conn, Stats) {
	s := NewServer(echo, Options{})
	s.limits.hold = time.Hour // no timer takes part
	c := newConn(s, t, 1)
	s.running.Add(1)
	c.serve()
	return c, s.Stats()
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
	netstring   = regexp.MustCompile(`(?s)^(0|[1-9][0-9]{0,5}):(.*)$`)
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
	return err != nil || n > MaxRead
}

func expectedReply(request string) string {
	mapName, key, ok := strings.Cut(request, " ")
	switch {
	case len(request) > MaxRequest:
		return "NOTFOUND "
	case !ok:
		return replyNoSpace
	}
	return "OK " + mapName + "|" + key
}

func checkStream(t *testing.T, stream, cuts []byte) {
	t.Helper()
	in := &tape{pieces: cut(stream, cuts)}
	c, stats := play(in)
	replies, malformed := expected(string(stream))
	if got := in.written.String(); got != replies {
		t.Errorf("stream %.200q in pieces %v:\ngot  %.300q\nwant %.300q", stream, cuts, got, replies)
	}
	if got := stats.Malformed == 1; got != malformed {
		t.Errorf("stream %.200q in pieces %v: malformed %v, want %v", stream, cuts, got, malformed)
	}
	if n := len(c.in); n > 16<<10 {
		t.Errorf("the read buffer has grown to %d bytes", n)
	}
	if stats.Panics > 0 {
		t.Error("a panic")
	}
}

func streams() []string {
	long := strings.Repeat("k", MaxRequest-len("postfix "))
	return []string{
		"",
		request("postfix", "example.com"),
		strings.Repeat(request("postfix", "example.com"), 300),
		request("postfix", long) + request("postfix", "a"),
		request("postfix", long+"k") + request("postfix", "a"),
		frame(strings.Repeat("k", MaxRead)) + request("postfix", "a"),
		request("postfix", "a") + fmt.Sprint(MaxRead+1, ":"),
		request("postfix", long)[:5000],
		frame(strings.Repeat("k", MaxRead))[:50000],
		frame(strings.Repeat("k", 20000))[:20006] + "!",
		"0:,0:,7:postfix,",
		"00:,", "01:a,", ":", "1", "1:", "1:a", "1:a;", "65536", "65537", "-1:a,",
		"\x16\x03\x01\x02\x00\x01\x00",
		"GET / HTTP/1.1\r\n\r\n",
	}
}

func TestStreamsInPiecesAreAnsweredAsWholeOnes(t *testing.T) {
	for _, stream := range streams() {
		for _, cuts := range [][]byte{nil, {0}, {1, 0, 2}, {254, 7}, {255}} {
			checkStream(t, []byte(stream), cuts)
		}
	}
}

func TestALargeRequestLeavesASmallBufferBehind(t *testing.T) {
	large := request("postfix", strings.Repeat("k", MaxRequest-len("postfix ")))
	c, stats := play(&tape{pieces: cut([]byte(large), nil)})
	if stats.Requests != 1 {
		t.Fatalf("%d requests, want 1", stats.Requests)
	}
	if len(c.in) != readBuffer || cap(c.out) != writeBuffer {
		t.Errorf("buffers of %d and %d bytes, want %d and %d", len(c.in), cap(c.out), readBuffer, writeBuffer)
	}
}

func TestRepliesToPipelinedRequestsShareWrites(t *testing.T) {
	in := &tape{pieces: [][]byte{[]byte(strings.Repeat(request("postfix", "example.com"), 20))}}
	play(in)
	if in.writes != 1 {
		t.Errorf("%d writes for 20 requests that came at once, want 1", in.writes)
	}
	in = &tape{pieces: [][]byte{[]byte(strings.Repeat(request("postfix", "example.com"), 2000))}}
	play(in)
	if least := in.written.Len() / (writeBuffer + maxGather); in.writes < least {
		t.Errorf("%d writes for %d bytes: too much was gathered", in.writes, in.written.Len())
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

// What readNetstring takes is what appendNetstring makes, and nothing else.
func FuzzNetstring(f *testing.F) {
	for _, s := range streams() {
		if len(s) < 100 { // the fuzzer is slow with long ones; expand makes them
			f.Add([]byte(s), "OK example.com")
		}
	}
	f.Add([]byte("4096:\xFE,"), "")
	f.Fuzz(func(t *testing.T, stream []byte, body string) {
		stream = expand(stream)
		r := bytes.NewReader(stream)
		br := bufio.NewReaderSize(r, 16)
		got, err := readNetstring(br, MaxReply)
		whole := netstring.FindSubmatch(stream)
		if err == nil {
			used := len(stream) - r.Len() - br.Buffered()
			if again := appendNetstring(nil, string(got)); !bytes.Equal(again, stream[:used]) {
				t.Errorf("%.80q was read as %.80q, which is written as %.80q", stream[:used], got, again)
			}
		} else if whole != nil {
			n, _ := strconv.Atoi(string(whole[1]))
			if n <= MaxReply && len(whole[2]) > n && whole[2][n] == ',' {
				t.Errorf("%.80q was not read: %v", stream, err)
			}
		}

		if len(body) > MaxReply {
			return
		}
		again, err := readNetstring(bufio.NewReader(bytes.NewReader(appendNetstring(nil, body))), MaxReply)
		if err != nil || string(again) != body {
			t.Errorf("%.80q came back as %.80q, %v", body, again, err)
		}
	})
}
