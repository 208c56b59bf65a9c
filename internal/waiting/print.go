package waiting

import (
	"bufio"
	"fmt"
	"io"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// WriteText writes what waits in words.
func (q *Queue) WriteText(w io.Writer, now time.Time) error {
	b := bufio.NewWriter(w)
	total := 0
	for _, g := range q.Groups {
		total += g.Messages
		g.write(b, now)
	}
	if total > 0 {
		fmt.Fprintf(b, "In all: %s for these reasons.", waits(total))
	} else {
		fmt.Fprintf(b, "No mail in %s's queue waits because of TLS or of sts-tlsmap.", q.MTA)
	}
	if q.Left > 0 {
		fmt.Fprintf(b, " %s for such reasons and had no room above.", waits(q.Left))
	}
	if q.Others > 0 {
		fmt.Fprintf(b, " %s for other reasons.", waits(q.Others))
	}
	fmt.Fprintln(b)
	return b.Flush()
}

func waits(n int) string {
	if n == 1 {
		return "1 message waits"
	}
	return fmt.Sprintf("%d messages wait", n)
}

func (g *Group) write(b *bufio.Writer, now time.Time) {
	name := text.Printable(g.Domain)
	if g.Domains > 0 {
		name = fmt.Sprintf("%d domains", g.Domains)
	}
	since := "since " + text.Moment(g.Oldest, now)
	if g.Messages > 1 {
		since = "the oldest " + since
	}
	fmt.Fprintf(b, "%s: %s, %s\n", name, waits(g.Messages), since)
	row := func(label, value string) {
		for _, line := range text.Wrap(text.Printable(value), 79-12) {
			fmt.Fprintf(b, "  %-9s %s\n", label, line)
			label = ""
		}
	}
	row("cause", g.Words)
	row(g.MTA, g.Reason)
	if g.Policy != "" {
		row("policy", g.Policy)
	}
	if g.Probe != "" {
		row("probe", g.Probe)
	}
	for _, s := range g.Steps {
		fmt.Fprintf(b, "  %s:\n      %s\n", s.For, s.Command)
	}
	fmt.Fprintln(b)
}

// WriteJSON writes each group as one line of JSON.
func (q *Queue) WriteJSON(w io.Writer) error {
	for _, g := range q.Groups {
		if err := text.WriteJSON(w, g); err != nil {
			return err
		}
	}
	return nil
}
