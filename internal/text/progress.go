package text

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// A Progress is a bar for people who watch a terminal.
type Progress struct {
	W     io.Writer
	Shown bool // on a terminal

	begun, drawn time.Time
	done, total  int // total is zero where it is not known
	onScreen     bool
}

const (
	barWidth = 30
	barEvery = 100 * time.Millisecond
)

// IsTerminal reports whether people may watch a file.
func IsTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// Begin starts the bar, for so many steps.
func (p *Progress) Begin(total int) { p.begun, p.done, p.total = time.Now(), 0, total }

// Step notes that one more is done.
func (p *Progress) Step() { p.At(p.done+1, fmt.Sprintf("%d of %d", p.done+1, p.total)) }

// At notes how much is done, in words too.
func (p *Progress) At(done int, words string) {
	p.done = done
	now := time.Now()
	if !p.Shown || p.begun.IsZero() || now.Sub(p.drawn) < barEvery && (p.total == 0 || done != p.total) {
		return
	}
	p.drawn, p.onScreen = now, true
	if p.total > 0 && done > 0 {
		full := min(barWidth, barWidth*done/p.total)
		left := time.Duration(float64(now.Sub(p.begun)) / float64(done) * float64(max(0, p.total-done)))
		words = fmt.Sprintf("[%s%s] %s, %s left", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), words, Span(left))
	}
	fmt.Fprintf(p.W, "\r\x1b[K%s", words)
}

// Clear makes room for a line of another kind.
func (p *Progress) Clear() {
	if p.onScreen {
		fmt.Fprint(p.W, "\r\x1b[K")
		p.onScreen = false
	}
}

// End leaves the bar as it is.
func (p *Progress) End() {
	if p.onScreen {
		fmt.Fprintln(p.W)
	}
}
