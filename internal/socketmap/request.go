package socketmap

import "bytes"

// A scanner finds the requests in a stream of bytes that comes in pieces.
type scanner struct {
	skipping bool // inside a request longer than MaxRequest
	left     int  // how much of it is still to come, without the comma
}

// A found says what scanner.next came upon.
type found uint8

const (
	foundNothing found = iota // the rest of the bytes is still to come
	foundRequest              // a request
	foundLong                 // the end of a request longer than MaxRequest
)

// next looks at b, the bytes of the stream that are not used yet, and returns
// how many of them it has used, and a request if there was a whole one; it
// points into b. After foundNothing it wants to see the unused bytes again,
// with more behind them: MaxRequest and a frame at the most.
func (s *scanner) next(b []byte) (request []byte, used int, what found, err error) {
	if s.skipping {
		return s.skip(b, 0)
	}
	length, size, err := parseHeader(b, MaxRead)
	switch {
	case err != nil:
		return nil, 0, foundNothing, err
	case size == 0:
		return nil, 0, foundNothing, nil
	case length > MaxRequest:
		s.skipping, s.left = true, length
		return s.skip(b, size)
	}
	end := size + length
	if len(b) <= end {
		return nil, 0, foundNothing, nil
	}
	if b[end] != ',' {
		return nil, 0, foundNothing, errMalformed
	}
	return b[size:end], end + 1, foundRequest, nil
}

// skip goes on with a long request in b from used on.
func (s *scanner) skip(b []byte, used int) ([]byte, int, found, error) {
	n := min(s.left, len(b)-used)
	s.left -= n
	used += n
	if s.left > 0 || used == len(b) {
		return nil, used, foundNothing, nil
	}
	if b[used] != ',' {
		return nil, used, foundNothing, errMalformed
	}
	s.skipping = false
	return nil, used + 1, foundLong, nil
}

// splitRequest takes "MAP KEY" apart at the first space.
func splitRequest(request []byte) (mapName, key []byte, ok bool) {
	return bytes.Cut(request, []byte{' '})
}
