package explain

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A Listing prints the cache, an entry a line: a table, or JSON. It holds
// some rows back to align them, and never more: the cache may hold millions.
type Listing struct {
	w     *bufio.Writer
	json  bool
	now   time.Time
	rows  [][]string
	width []int
	count int
}

// alignedRows is how many rows are aligned to each other.
const alignedRows = 500

var columns = []string{"DOMAIN", "MODE", "ID", "AGE", "EXPIRES", "CHECKED", "USED", "FAILURES"}

// NewListing returns a Listing that writes to w.
func NewListing(w io.Writer, asJSON bool, now time.Time) *Listing {
	return &Listing{w: bufio.NewWriter(w), json: asJSON, now: now, width: make([]int, len(columns))}
}

// Add prints an entry, sooner or later.
func (l *Listing) Add(e control.Entry) error {
	if l.json {
		l.count++
		return json.NewEncoder(l.w).Encode(e)
	}
	if l.count == 0 {
		l.rows = append(l.rows, columns)
	}
	l.count++
	age := "-"
	if !e.Fetched.IsZero() {
		age = span(l.now.Sub(e.Fetched))
	}
	expires := "-"
	if !e.Expires.IsZero() {
		expires = when(e.Expires, l.now)
		if !e.Expires.After(l.now) {
			expires = "expired " + expires
		}
	}
	failures := ""
	if e.Failures > 0 {
		failures = fmt.Sprint(e.Failures)
	}
	row := []string{e.Domain, e.Mode, e.ID, age, expires, when(e.Checked, l.now), usedWord(e.Used, l.now), failures}
	for i := range row {
		row[i] = printable(row[i])
	}
	l.rows = append(l.rows, row)
	if len(l.rows) >= alignedRows {
		return l.print()
	}
	return nil
}

// usedWord is coarse, since the last use is known to the day only.
func usedWord(t, now time.Time) string {
	switch days := int(now.Sub(t) / (24 * time.Hour)); {
	case t.IsZero():
		return "never"
	case days < 1:
		return "today"
	default:
		return fmt.Sprintf("%dd ago", days)
	}
}

// print writes the rows that are held back. Columns grow and do not shrink.
func (l *Listing) print() error {
	for _, row := range l.rows {
		for i, s := range row {
			l.width[i] = max(l.width[i], utf8.RuneCountInString(s))
		}
	}
	for _, row := range l.rows {
		var b strings.Builder
		for i, s := range row {
			b.WriteString(s)
			b.WriteString(strings.Repeat(" ", l.width[i]-utf8.RuneCountInString(s)+2))
		}
		if _, err := l.w.WriteString(strings.TrimRight(b.String(), " ") + "\n"); err != nil {
			return err
		}
	}
	l.rows = l.rows[:0]
	return l.w.Flush()
}

// Close prints what was held back.
func (l *Listing) Close() error {
	if l.json {
		return l.w.Flush()
	}
	return l.print()
}

// Count returns how many entries were added.
func (l *Listing) Count() int { return l.count }

// WriteHeld prints all that is held of one domain.
func WriteHeld(w io.Writer, h *control.Held, now time.Time) error {
	t := &text{w: bufio.NewWriter(w)}
	t.head("%s", printable(h.Domain))
	heldWords(t, h, now)
	if h.Entry != nil && h.Entry.Policy != "" {
		t.block("policy", h.Entry.Policy)
		if p, err := policy.Parse([]byte(h.Entry.Policy)); err == nil {
			policyWords(t, p)
		}
	}
	return t.w.Flush()
}

// WriteHeldJSON writes all that is held of one domain as one line of JSON:
// the fields of an entry as in a listing, and beside them what else there is.
func WriteHeldJSON(w io.Writer, h *control.Held) error {
	return json.NewEncoder(w).Encode(struct {
		Domain string `json:"domain"`
		*control.Entry
		Damaged  string            `json:"damaged,omitempty"`
		Negative *control.Negative `json:"negative,omitempty"`
		Exempt   bool              `json:"exempt,omitempty"`

		ExemptUntil time.Time           `json:"exempt_until,omitzero"`
		Rehearsed   []control.Rehearsed `json:"rehearsed,omitempty"`
	}{h.Domain, h.Entry, h.Damaged, h.Negative, h.Exempt, h.ExemptUntil, h.Rehearsed})
}
