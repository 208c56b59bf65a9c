package text

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
)

// NewLogger returns a logger to f. The journal adds the time by itself; there
// the lines come without, and with their priority.
func NewLogger(f *os.File, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if !IsJournal(f, os.Getenv("JOURNAL_STREAM")) {
		return slog.New(slog.NewTextHandler(f, o))
	}
	o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime && len(groups) == 0 {
			return slog.Attr{}
		}
		return a
	}
	out := &prefixed{w: f}
	return slog.New(&journalHandler{slog.NewTextHandler(out, o), out})
}

// JournalError is the prefix of sd-daemon(3) that marks a line as an error.
const JournalError = "<3>"

// prefixOf is the prefix of a level, so that journalctl -p warning shows what an
// operator has to see.
func prefixOf(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return JournalError
	case l >= slog.LevelWarn:
		return "<4>"
	case l >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}

// A journalHandler writes a record's priority before its line.
type journalHandler struct {
	slog.Handler
	out *prefixed
}

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.prefix = prefixOf(r.Level)
	return h.Handler.Handle(ctx, r)
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journalHandler{h.Handler.WithAttrs(attrs), h.out}
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	return &journalHandler{h.Handler.WithGroup(name), h.out}
}

// prefixed puts a prefix before each write, which is a line of a text handler.
type prefixed struct {
	mu     sync.Mutex // held from the prefix to the end of its line
	w      io.Writer
	prefix string
}

func (p *prefixed) Write(b []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// IsJournal reports whether f is the stream that systemd says leads to the
// journal: JOURNAL_STREAM is its device and inode (systemd.exec(5)). The
// variable alone says nothing: children inherit it.
func IsJournal(f *os.File, stream string) bool {
	st, err := f.Stat()
	if err != nil || stream == "" {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", sys.Dev, sys.Ino)
}
