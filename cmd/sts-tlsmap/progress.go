package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// A progress is a bar for people who watch a terminal.
type progress struct {
	w     io.Writer
	shown bool // on a terminal

	begun, drawn time.Time
	done, total  int // total is zero where it is not known
	onScreen     bool
}

const (
	barWidth = 30
	barEvery = 100 * time.Millisecond
)

// isTerminal reports whether people may watch a file.
func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// begin starts the bar, for so many steps.
func (p *progress) begin(total int) { p.begun, p.done, p.total = time.Now(), 0, total }

// step notes that one more is done.
func (p *progress) step() { p.at(p.done+1, fmt.Sprintf("%d of %d", p.done+1, p.total)) }

// at notes how much is done, in words too.
func (p *progress) at(done int, words string) {
	p.done = done
	now := time.Now()
	if !p.shown || p.begun.IsZero() || now.Sub(p.drawn) < barEvery && (p.total == 0 || done != p.total) {
		return
	}
	p.drawn, p.onScreen = now, true
	if p.total > 0 && done > 0 {
		full := min(barWidth, barWidth*done/p.total)
		left := time.Duration(float64(now.Sub(p.begun)) / float64(done) * float64(max(0, p.total-done)))
		words = fmt.Sprintf("[%s%s] %s, %s left", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), words, text.Span(left))
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", words)
}

// clear makes room for a line of another kind.
func (p *progress) clear() {
	if p.onScreen {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.onScreen = false
	}
}

// end leaves the bar as it is.
func (p *progress) end() {
	if p.onScreen {
		fmt.Fprintln(p.w)
	}
}
