package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
)

// lines writes an answer of several lines of JSON.
type lines struct {
	s   *Server
	w   http.ResponseWriter
	buf bytes.Buffer
	enc *json.Encoder
}

// flushAt is how much is gathered before it is written, in bytes.
const flushAt = 32 << 10

func (s *Server) lines(w http.ResponseWriter) *lines {
	l := &lines{s: s, w: w}
	l.enc = json.NewEncoder(&l.buf)
	w.Header().Set("Content-Type", "application/x-ndjson")
	return l
}

// write adds a line. An error means that the client is gone.
func (l *lines) write(v any) error {
	if err := l.enc.Encode(v); err != nil {
		return err
	}
	if l.buf.Len() >= flushAt {
		return l.flush()
	}
	return nil
}

// flush sends what was written, within the time that a client has to take it.
func (l *lines) flush() error {
	l.s.bound(l.w)
	if _, err := l.w.Write(l.buf.Bytes()); err != nil {
		return err
	}
	l.buf.Reset()
	return http.NewResponseController(l.w).Flush()
}

// end writes the last line. Nothing can be done about its failure.
func (l *lines) end(err error) {
	e := End{End: true}
	if err != nil {
		e.Err = err.Error()
	}
	if l.write(e) == nil {
		_ = l.flush()
	}
}

// answer writes an answer of one JSON value.
func answer(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "the answer is no JSON: %v", err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n')) // a client that is gone needs no answer
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, status int, format string, args ...any) {
	answer(w, status, failure{Err: fmt.Sprintf(format, args...)})
}
