// Package reader reads TLS reports (RFC 8460) that others sent: JSON, gzip, mail
// messages, mbox files, and folders of these, Maildirs too. It reads what senders really
// send, and goes on after a broken report. Totals adds reports up. Signatures are not
// checked: the mail server that took the mail does that.
package reader

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The bounds of what is read. Most mail servers take ten megabytes (RFC 8460, 5.2).
const (
	maxMessage = 32 << 20  // bytes of a mail message
	maxHeader  = 1 << 20   // bytes of its header
	maxJSON    = 32 << 20  // bytes of the reports in a file or message, uncompressed
	maxObjects = 125_000   // JSON objects in it, most of them failure details
	maxCommas  = 1_000_000 // commas in it, between fields and between strings
	maxParts   = 100       // MIME parts of a message or part
	maxNesting = 10        // MIME parts and messages within others
	maxKnown   = 1_000_000 // reports remembered to notice duplicates
)

// A Reader reads reports and counts them. A place is where something stands: a file, a
// message of an mbox, a part of a message.
type Reader struct {
	Report  func(place string, r *Report) // is called for each report but duplicates
	Problem func(place string, err error) // is called for what cannot be read

	Inputs     int // files, and messages of mbox files, that were read
	Reports    int // duplicates are not among them
	Duplicates int // reports that were there before
	Problems   int

	left  int // bytes of maxJSON that the file or message may still have; below 0: the rest is passed over
	known map[[sha256.Size]byte]struct{}
}

func (r *Reader) problem(place string, err error) {
	r.Problems++
	r.Problem(place, err)
}

// Read reads a file, or all regular files in and below a folder. Hidden
// ones, a Maildir's tmp, and symbolic links to folders are left out.
func (r *Reader) Read(name string) {
	if st, err := os.Stat(name); err == nil && st.IsDir() {
		r.folder(name + "/") // if it is a link, WalkDir follows
		return
	}
	f, err := os.Open(name)
	if err != nil {
		r.problem(name, cmp.Or(errors.Unwrap(err), err))
		return
	}
	defer f.Close()
	r.Stream(name, f)
}

func (r *Reader) folder(root string) {
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		leftOut := path != root && (strings.HasPrefix(d.Name(), ".") || d.IsDir() && d.Name() == "tmp")
		switch {
		case err != nil:
			r.problem(path, cmp.Or(errors.Unwrap(err), err))
		case leftOut && d.IsDir():
			return fs.SkipDir
		case !leftOut && !d.IsDir():
			if st, err := os.Stat(path); err != nil || st.Mode().IsRegular() { // the end of a FIFO may never come
				r.Read(path)
			}
		}
		return nil
	})
}

// gzipMagic begins a compressed text, and blanks may precede JSON.
const (
	gzipMagic     = "\x1f\x8b"
	byteOrderMark = "\ufeff" // of UTF-8
	blanks        = byteOrderMark + " \t\r\n"
)

// Stream reads what is in a file, in any of the forms.
func (r *Reader) Stream(place string, in io.Reader) {
	b := bufio.NewReader(in)
	start, err := b.Peek(512)
	r.left = maxJSON
	if rest, marked := bytes.CutPrefix(start, []byte(byteOrderMark)); marked {
		start = rest
		_, _ = b.Discard(len(byteOrderMark))
	}
	switch {
	case err != nil && err != io.EOF:
		r.problem(place, err)
		return
	case bytes.HasPrefix(start, []byte("\xff\xfe")), bytes.HasPrefix(start, []byte("\xfe\xff")):
		r.problem(place, errors.New("it is in UTF-16; convert it to UTF-8 first"))
	case bytes.HasPrefix(start, []byte(fromLine)):
		r.mbox(place, b)
		return
	case bytes.HasPrefix(start, []byte(gzipMagic)), bytes.HasPrefix(bytes.TrimLeft(start, blanks), []byte("{")):
		r.document(place, b, false)
	default:
		r.message(place, b, 0)
	}
	r.Inputs++
}

// document reads a report, perhaps compressed. What is neither gzip nor JSON is a problem
// only if it claims to be a report, by its media type.
func (r *Reader) document(place string, in io.Reader, claims bool) {
	b := bufio.NewReader(in)
	start, _ := b.Peek(512)
	compressed := bytes.HasPrefix(start, []byte(gzipMagic))
	if r.left < 0 || !claims && !compressed && !bytes.HasPrefix(bytes.TrimLeft(start, blanks), []byte("{")) {
		return
	}
	var text []byte
	var err error
	if in = b; compressed {
		in, err = gzip.NewReader(b)
	}
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(in, int64(r.left)+1))
		r.left -= len(text)
	}
	text = bytes.Trim(text, blanks)
	isJSON := bytes.HasPrefix(text, []byte("{"))
	var report Report
	switch {
	case err != nil: // nothing of it counts, since the checksum was not reached
	case r.left < 0:
		err = fmt.Errorf("more than %d MiB of JSON", maxJSON>>20)
	case isJSON && (bytes.Count(text, []byte("{")) > maxObjects || bytes.Count(text, []byte(",")) > maxCommas):
		err = fmt.Errorf("more than %d objects or %d commas in the JSON", maxObjects, maxCommas)
	case isJSON:
		err = json.Unmarshal(text, &report)
	}
	if err == nil && claims && report.Policies == nil {
		err = errors.New("neither JSON nor gzip with a TLS report")
	}
	if err != nil {
		r.problem(place, err)
	} else if report.Policies != nil {
		r.found(place, &report)
	}
}

// found hands a report on if it is no duplicate. All of it counts: who only knows a
// report's id could hide the report behind an empty one.
func (r *Reader) found(place string, report *Report) {
	whole, _ := json.Marshal(report) // it came from JSON
	key := sha256.Sum256(whole)
	if _, ok := r.known[key]; ok {
		r.Duplicates++
		return
	}
	if r.known == nil || len(r.known) >= maxKnown {
		r.known = map[[sha256.Size]byte]struct{}{}
	}
	r.known[key] = struct{}{}
	r.Reports++
	r.Report(place, report)
}
