package explain

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// heldWords writes what is held, except the policy's text.
func heldWords(p printer, h *control.Held, now time.Time) {
	p.row("damaged", h.Damaged)
	if e := h.Entry; e != nil {
		p.row("mode", e.Mode)
		p.row("id", e.ID)
		if e.PendingID != "" {
			p.row("new id", e.PendingID+", with the old text so far: looked at again soon (RFC 8461, 8.1)")
		}
		p.row("fetched", text.Moment(e.Fetched, now))
		p.row("expires", text.Moment(e.Expires, now))
		p.row("checked", text.Moment(e.Checked, now))
		p.row("used", text.Moment(e.Used, now))
		p.row("due", text.Moment(e.Due, now))
		if e.Failures > 0 {
			p.row("failures", fmt.Sprintf("%d in a row, the last one %s", e.Failures, text.Moment(e.FailedAt, now)))
		}
		p.row("last error", e.LastError)
		if e.NotOnDisk {
			p.row("on disk", "no: it is answered from memory; "+e.WhyNotOnDisk)
		}
	}
	if n := h.Negative; n != nil {
		p.row("not found", fmt.Sprintf("%s; not tried again before %s", n.Result, text.Moment(n.Until, now)))
		p.row("because", n.Err)
	}
	for _, e := range h.ExemptBy {
		p.row("exempt", exemptWord(e, h.Domain, now)+": every map replies NOTFOUND")
	}
	for _, x := range h.Rehearsed {
		lookups := "1 lookup"
		if x.Count != 1 {
			lookups = fmt.Sprintf("%d lookups", x.Count)
		}
		p.row("rehearsed", fmt.Sprintf("map %s would have replied to %s, the last one %s: %s", x.Map, lookups, text.Moment(x.Last, now), x.Reply))
	}
}

// WriteHeld prints all that is held of one domain.
func WriteHeld(w io.Writer, h *control.Held, now time.Time) error {
	p := printer{bufio.NewWriter(w)}
	fmt.Fprintln(p.w, text.Printable(h.Domain))
	heldWords(p, h, now)
	if h.Entry != nil && h.Entry.Policy != "" {
		p.verbatim("policy", h.Entry.Policy)
		if pol, err := policy.Parse([]byte(h.Entry.Policy)); err == nil {
			policyWords(p, pol)
		}
	}
	return p.w.Flush()
}

// WriteHeldJSON writes all that is held for one domain as one line of JSON: the fields
// of an entry in a listing, and the negative result, exemption and rehearsals.
func WriteHeldJSON(w io.Writer, h *control.Held) error {
	return text.WriteJSON(w, struct {
		Domain string `json:"domain"`
		*control.Entry
		Damaged  string           `json:"damaged,omitempty"`
		Negative *keeper.Negative `json:"negative,omitempty"`
		Exempt   bool             `json:"exempt,omitempty"`

		ExemptUntil time.Time          `json:"exempt_until,omitzero"`
		Rehearsed   []tlsmap.Rehearsed `json:"rehearsed,omitempty"`
	}{h.Domain, h.Entry, h.Damaged, h.Negative, h.Exempt, h.ExemptUntil, h.Rehearsed})
}

// listingRow has columns of a fixed width: a longer domain moves its own row only.
const listingRow = "%-30s %-8s %-10s %-10s %-10s %s\n"

// A Listing prints the cache, one entry per line: a table with a total, or JSON.
type Listing struct {
	w       *bufio.Writer
	json    bool
	now     time.Time
	count   int
	modes   map[string]int
	failing int
}

// NewListing returns a Listing that writes to w.
func NewListing(w io.Writer, asJSON bool, now time.Time) *Listing {
	return &Listing{w: bufio.NewWriter(w), json: asJSON, now: now, modes: make(map[string]int)}
}

// Add prints an entry.
func (l *Listing) Add(e control.Entry) error {
	l.count++
	l.modes[e.Mode]++
	if e.Failures > 0 {
		l.failing++
	}
	if l.json {
		return text.WriteJSON(l.w, e)
	}
	if l.count == 1 {
		fmt.Fprintf(l.w, listingRow, "DOMAIN", "MODE", "FETCHED", "EXPIRES", "USED", "FAILED")
	}
	failed := fmt.Sprint(e.Failures)
	if e.NotOnDisk {
		failed += " (not on disk)"
	}
	_, err := fmt.Fprintf(l.w, listingRow, text.Printable(e.Domain), text.Printable(e.Mode),
		text.When(e.Fetched, l.now), text.When(e.Expires, l.now), text.When(e.Used, l.now), failed)
	return err
}

// Close prints the total and what is buffered.
func (l *Listing) Close() error {
	if l.count > 0 && !l.json {
		sep := ":"
		fmt.Fprintf(l.w, "\ntotal %d", l.count)
		for _, mode := range slices.Sorted(maps.Keys(l.modes)) {
			fmt.Fprintf(l.w, "%s %d %s", sep, l.modes[mode], text.Printable(mode))
			sep = ","
		}
		fmt.Fprintf(l.w, "; %d failing\n", l.failing)
	}
	return l.w.Flush()
}

// Count returns how many entries were added.
func (l *Listing) Count() int { return l.count }
