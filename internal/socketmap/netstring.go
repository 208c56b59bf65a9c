package socketmap

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// A netstring is LENGTH ":" BYTES ",", its length in decimal digits without
// leading zeros (https://cr.yp.to/proto/netstrings.txt).

var (
	errMalformed = errors.New("not a netstring")
	errTooLong   = errors.New("netstring too long")
)

const maxHeader = len("100000:") // the longest that is read or written here

// parseHeader reads the header at the start of b: the length, and how many
// bytes the header takes. size is 0 if b ends before the colon. It fails as
// soon as b cannot become the header of a netstring of at most max bytes.
func parseHeader(b []byte, max int) (length, size int, err error) {
	for i, c := range b {
		switch {
		case c == ':' && i > 0:
			return length, i + 1, nil
		case c < '0' || c > '9', i > 0 && length == 0: // a leading zero
			return 0, 0, errMalformed
		}
		length = length*10 + int(c-'0')
		if length > max {
			return 0, 0, errTooLong
		}
	}
	return 0, 0, nil
}

// readHeader takes the header of a netstring of at most max bytes off r.
func readHeader(r *bufio.Reader, max int) (length int, err error) {
	for n := 1; ; n++ {
		b, err := r.Peek(n)
		if err != nil {
			return 0, err
		}
		length, size, err := parseHeader(b, max)
		if err != nil {
			begin, _ := r.Peek(min(r.Buffered(), maxLoggedBytes))
			return 0, fmt.Errorf("%w: it begins with %s", err, text.Quote(string(begin), maxLoggedBytes))
		}
		if size > 0 {
			r.Discard(size)
			return length, nil
		}
	}
}

// readBody takes the rest of a netstring off r. Short ones are valid until the
// next read.
func readBody(r *bufio.Reader, length int) (body []byte, err error) {
	if length < r.Size() {
		body, err = r.Peek(length + 1)
		r.Discard(len(body))
	} else {
		body = make([]byte, length+1)
		_, err = io.ReadFull(r, body)
	}
	if err != nil {
		return nil, err
	}
	if body[length] != ',' {
		return nil, fmt.Errorf("%w: no comma after %d bytes", errMalformed, length)
	}
	return body[:length], nil
}
