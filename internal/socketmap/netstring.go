package socketmap

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// A netstring is LENGTH ":" BYTES ",", its length in decimal digits without
// leading zeros (https://cr.yp.to/proto/netstrings.txt).

var (
	errMalformed = errors.New("not a netstring")
	errTooLong   = errors.New("netstring too long")
)

// maxHeader is the longest header of a netstring that is read or written
// here: "100000:".
const maxHeader = 7

// parseHeader reads the header at the start of b: the length, and how many
// bytes the header takes. size is 0 if b ends before the colon. It fails as
// soon as b cannot become the header of a netstring of at most max bytes.
func parseHeader(b []byte, max int) (length, size int, err error) {
	for i, c := range b {
		switch {
		case c == ':' && i > 0:
			return length, i + 1, nil
		case c < '0' || c > '9':
			return 0, 0, errMalformed
		case i > 0 && length == 0: // a leading zero
			return 0, 0, errMalformed
		}
		length = length*10 + int(c-'0')
		if length > max {
			return 0, 0, errTooLong
		}
	}
	return 0, 0, nil
}

// appendNetstring appends s as a netstring.
func appendNetstring(dst []byte, s string) []byte {
	dst = strconv.AppendInt(dst, int64(len(s)), 10)
	dst = append(dst, ':')
	dst = append(dst, s...)
	return append(dst, ',')
}

// readNetstring reads one netstring of at most max bytes. The error is io.EOF
// if there was not even a first byte.
func readNetstring(r *bufio.Reader, max int) ([]byte, error) {
	var header []byte
	for {
		c, err := r.ReadByte()
		if err != nil {
			return nil, cutShort(err, len(header) > 0)
		}
		header = append(header, c)
		length, size, err := parseHeader(header, max)
		if err != nil {
			return nil, fmt.Errorf("%w: it begins with %q", err, header)
		}
		if size == 0 {
			continue
		}
		body := make([]byte, length+1)
		if _, err := io.ReadFull(r, body); err != nil {
			return nil, cutShort(err, true)
		}
		if body[length] != ',' {
			return nil, fmt.Errorf("%w: no comma after %d bytes", errMalformed, length)
		}
		return body[:length], nil
	}
}

// cutShort tells an end in the middle of a netstring from one before it.
func cutShort(err error, begun bool) error {
	if begun && errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
