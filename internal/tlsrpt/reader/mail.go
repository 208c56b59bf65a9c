package reader

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"strings"

	"github.com/emersion/go-message"
	"github.com/emersion/go-message/textproto"
)

// message reads a mail message. A broken one is told if it claims to have a report, by
// its header: addresses for reports get spam too.
func (r *Reader) message(place string, in io.Reader, depth int) {
	limited := &io.LimitedReader{R: in, N: maxHeader}
	b := bufio.NewReader(limited)
	header, err := textproto.ReadHeader(b)
	if err != nil && header.Len() == 0 && limited.N > 0 {
		return // not a message
	}
	claims := err != nil || limited.N == 0 || header.Has("TLS-Report-Domain") || strings.Contains(strings.ToLower(header.Get("Content-Type")), "tlsrpt")
	if err == nil && limited.N > 0 {
		before := r.Reports + r.Duplicates + r.Problems
		limited.N = maxMessage
		err = r.entity(place, message.Header{Header: header}, b, depth)
		if err == nil && before == r.Reports+r.Duplicates+r.Problems {
			err = errors.New("no TLS report is in it")
		}
	}
	if limited.N == 0 {
		err = fmt.Errorf("more than %d MiB of a message, or %d MiB of its header", maxMessage>>20, maxHeader>>20)
	}
	if err != nil && claims {
		r.problem(place, fmt.Errorf("a broken message: %w", err))
	}
}

// entity reads a message or one of its parts. Reports are recognized by what is in a
// part: senders differ in the media types and names that they give them.
func (r *Reader) entity(place string, header message.Header, body io.Reader, depth int) error {
	e, _ := message.New(header, body) // decodes the body
	media, params, _ := header.ContentType()
	_, disposition, _ := header.ContentDisposition()
	media, name := strings.ToLower(media), cmp.Or(disposition["filename"], params["name"])
	claims := strings.HasPrefix(media, "application/tlsrpt")
	switch {
	case depth > maxNesting:
		return fmt.Errorf("parts or messages are nested more than %d deep", maxNesting)
	case strings.HasPrefix(media, "multipart/"): // package multipart bounds the headers of parts, go-message does not
		parts := multipart.NewReader(e.Body, params["boundary"])
		var broken error
		for n := 1; ; n++ {
			part, err := parts.NextRawPart()
			if err == io.EOF {
				return broken
			} else if err != nil || n > maxParts {
				return cmp.Or(broken, err, fmt.Errorf("more than %d parts", maxParts))
			}
			broken = cmp.Or(broken, r.entity(fmt.Sprintf("%s: part %d", place, n), message.HeaderFromMap(part.Header), part, depth+1))
		}
	case media == "message/rfc822":
		r.message(place, e.Body, depth+1)
	case claims || name != "" || !strings.HasPrefix(media, "text/"):
		r.document(place, e.Body, claims)
	}
	return nil
}

// fromLine begins each message of an mbox.
const fromLine = "From "

// mbox reads the messages of an mbox file. A line From after an empty line begins one.
func (r *Reader) mbox(place string, in *bufio.Reader) {
	var text bytes.Buffer
	whole, empty := true, true // the line before was read to its end, and was empty
	for n := 0; ; {
		line, err := in.ReadSlice('\n')
		if begins := whole && empty && bytes.HasPrefix(line, []byte(fromLine)); begins || len(line) == 0 {
			if at := fmt.Sprintf("%s: message %d", place, n); n > 0 {
				r.left = maxJSON
				r.message(at, &text, 0)
				r.Inputs++
			}
			n++
			text.Reset()
		} else if text.Len() <= maxHeader+maxMessage {
			text.Write(line)
		}
		if len(line) == 0 {
			if err != io.EOF {
				r.problem(place, err)
			}
			return
		}
		empty = whole && len(bytes.TrimRight(line, "\r\n")) == 0
		whole = line[len(line)-1] == '\n'
	}
}
