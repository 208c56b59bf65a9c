package explain

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// maxPrinted bounds one value from the network in the text, in bytes.
const maxPrinted = 1000

// printable makes a stranger's text safe for a terminal: what is not a
// printable character of Unicode, line ends and direction marks included, is
// written as an escape.
func printable(s string) string {
	cut := len(s) > maxPrinted
	if cut {
		s = s[:maxPrinted]
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u{%x}`, r)
		}
		i += n
	}
	if cut {
		b.WriteString("...")
	}
	return b.String()
}

// clock writes a time as people at this machine read it.
func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }

// span writes a length of time in its two largest units.
func span(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	const day = 24 * time.Hour
	switch {
	case d >= 10*day:
		return fmt.Sprintf("%dd", d/day)
	case d >= day:
		return units(d, day, "d", time.Hour, "h")
	case d >= time.Hour:
		return units(d, time.Hour, "h", time.Minute, "m")
	case d >= time.Minute:
		return units(d, time.Minute, "m", time.Second, "s")
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

func units(d, large time.Duration, l string, small time.Duration, s string) string {
	text := fmt.Sprintf("%d%s", d/large, l)
	if rest := d % large / small; rest > 0 {
		text += fmt.Sprintf("%d%s", rest, s)
	}
	return text
}

// when writes a time relative to now: "3h12m ago", "in 6d", or "never".
func when(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case t.After(now):
		return "in " + span(t.Sub(now))
	}
	return span(now.Sub(t)) + " ago"
}
