// Package text is output for people: it makes strings from the network safe for
// terminals and logs, writes times and durations the same way everywhere, draws
// a progress bar, and marks log lines for the journal.
package text

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxPrinted is the usual bound, in bytes, on one value from the network.
const MaxPrinted = 1000

// Cut returns s, or its first most bytes and "...", cut between characters.
func Cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "..."
}

// Quote returns at most most bytes of s as a Go string literal in ASCII.
func Quote(s string, most int) string { return strconv.QuoteToASCII(Cut(s, most)) }

// Printable returns at most MaxPrinted bytes of s. Characters that are not
// printable, line ends, control characters and direction marks among them, are
// replaced by escapes.
func Printable(s string) string {
	s = Cut(s, MaxPrinted)
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < utf8.RuneSelf:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u{%x}`, r)
		}
		i += n
	}
	return b.String()
}

// WriteJSON writes v as one line of JSON, in which characters that a terminal
// would obey, or that turn the direction of text, are escaped.
func WriteJSON(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	out := make([]byte, 0, len(line)+1)
	for _, r := range string(line) { // JSON has such characters in strings only
		if unicode.IsPrint(r) {
			out = utf8.AppendRune(out, r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			out = fmt.Appendf(out, `\u%04x`, unit)
		}
	}
	_, err = w.Write(append(out, '\n'))
	return err
}

// Clock writes a moment in local time: "2006-01-02 15:04:05 MST".
func Clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }

// Span writes a duration in its two largest units: "3h12m", "6d". A negative
// one is "0s".
func Span(d time.Duration) string {
	const day = 24 * time.Hour
	d = max(d, 0)
	switch {
	case d >= 10*day:
		return fmt.Sprintf("%dd", d/day)
	case d >= day:
		return twoUnits(d, day, "d", time.Hour, "h")
	case d >= time.Hour:
		return twoUnits(d, time.Hour, "h", time.Minute, "m")
	case d >= time.Minute:
		return twoUnits(d, time.Minute, "m", time.Second, "s")
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

func twoUnits(d, large time.Duration, l string, small time.Duration, s string) string {
	out := fmt.Sprintf("%d%s", d/large, l)
	if rest := d % large / small; rest > 0 {
		out += fmt.Sprintf("%d%s", rest, s)
	}
	return out
}

// When writes a moment relative to now: "3h12m ago", "in 6d", or "never" for
// the zero time.
func When(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case t.After(now):
		return "in " + Span(t.Sub(now))
	}
	return Span(now.Sub(t)) + " ago"
}

// Wrap breaks a sentence at its blanks into lines of no more characters than that,
// where it can.
func Wrap(s string, width int) (lines []string) {
	for i, word := range strings.Split(s, " ") {
		last := len(lines) - 1
		if i > 0 && utf8.RuneCountInString(lines[last])+1+utf8.RuneCountInString(word) <= width {
			lines[last] += " " + word
			continue
		}
		lines = append(lines, word)
	}
	return lines
}

// Moment writes a moment in local time and relative to now: "2006-01-02 15:04:05 MST
// (in 6d)", or "never" for the zero time.
func Moment(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return Clock(t) + " (" + When(t, now) + ")"
}
