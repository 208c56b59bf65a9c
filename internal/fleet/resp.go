package fleet

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// The protocol between client and engine (RESP2). The client libraries allocate whatever
// length a reply announces, and a length such as 9223372036854775807 ends the process: a
// hostile engine could stop all mail. This parser takes memory only for what arrives, and
// for no more than a limit.

const (
	maxLine  = 4096 // bytes of a status, an error or a number
	maxDepth = 3    // arrays in arrays
	element  = 32   // bytes that an element of an array counts beside its content
)

// A replyError is an error that the engine itself has replied: "READONLY ...".
type replyError string

func (e replyError) Error() string { return "the engine replied " + strconv.Quote(string(e)) }

// errProtocol is a reply that breaks the protocol or a limit.
var errProtocol = errors.New("the engine's reply breaks the protocol")

// appendCommand appends a command: an array of strings.
func appendCommand(b []byte, args []string) []byte {
	b = fmt.Appendf(b, "*%d\r\n", len(args))
	for _, arg := range args {
		b = fmt.Appendf(b, "$%d\r\n", len(arg))
		b = append(append(b, arg...), "\r\n"...)
	}
	return b
}

// readReply reads one reply: nil, a string, an int64 or a list of them; an error of the
// engine is a replyError. left is how many bytes the reply may take.
func readReply(r *bufio.Reader, left *int, depth int) (any, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			err = errProtocol
		}
		return nil, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return nil, errProtocol
	}
	if *left -= len(line) + element; *left < 0 {
		return nil, fmt.Errorf("%w: it is too long", errProtocol)
	}
	kind, text := line[0], string(line[1:len(line)-2])
	switch kind {
	case '+':
		return text, nil
	case '-':
		return nil, replyError(text)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil:
		return nil, errProtocol
	case kind == ':':
		return n, nil
	case kind != '$' && kind != '*' || n < -1:
		return nil, errProtocol
	case n == -1:
		return nil, nil
	case n > int64(*left):
		return nil, fmt.Errorf("%w: it is too long", errProtocol)
	case kind == '$':
		*left -= int(n)
		return readBulk(r, int(n))
	case depth == maxDepth:
		return nil, errProtocol
	}
	var list []any
	for range n {
		v, err := readReply(r, left, depth+1)
		if err != nil && !errors.As(err, new(replyError)) {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func readBulk(r *bufio.Reader, n int) (any, error) {
	b := make([]byte, n+2) // n is below the limit
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	if string(b[n:]) != "\r\n" {
		return nil, errProtocol
	}
	return string(b[:n]), nil
}
