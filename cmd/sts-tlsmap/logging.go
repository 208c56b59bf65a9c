package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
)

// newLogger returns a logger to f. The journal adds the time by itself; then
// the lines come without, and with their priority.
func newLogger(f *os.File, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if !isJournal(f, os.Getenv("JOURNAL_STREAM")) {
		return slog.New(slog.NewTextHandler(f, o))
	}
	o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime && len(groups) == 0 {
			return slog.Attr{}
		}
		return a
	}
	h := make(journalHandler, len(priorities))
	for i, p := range priorities {
		h[i] = slog.NewTextHandler(prefixed{f, p.prefix}, o)
	}
	return slog.New(h)
}

// priorities are the prefixes of sd-daemon(3) by the lowest level of each, so
// that journalctl -p warning shows what an operator has to see.
var priorities = []struct {
	from   slog.Level
	prefix string
}{
	{slog.LevelError, prefixError},
	{slog.LevelWarn, "<4>"},
	{slog.LevelInfo, "<6>"},
	{slog.LevelDebug, "<7>"},
}

// prefixError marks a line of the journal as an error.
const prefixError = "<3>"

// A journalHandler writes each record through the handler of its priority.
type journalHandler []slog.Handler

func (h journalHandler) of(l slog.Level) slog.Handler {
	for i, p := range priorities {
		if l >= p.from {
			return h[i]
		}
	}
	return h[len(h)-1]
}

func (h journalHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.of(l).Enabled(ctx, l)
}

func (h journalHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.of(r.Level).Handle(ctx, r)
}

func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.each(func(one slog.Handler) slog.Handler { return one.WithAttrs(attrs) })
}

func (h journalHandler) WithGroup(name string) slog.Handler {
	return h.each(func(one slog.Handler) slog.Handler { return one.WithGroup(name) })
}

func (h journalHandler) each(f func(slog.Handler) slog.Handler) slog.Handler {
	with := make(journalHandler, len(h))
	for i, one := range h {
		with[i] = f(one)
	}
	return with
}

// prefixed puts a prefix before everything that is written in one go, which
// with a text handler is a line.
type prefixed struct {
	w      io.Writer
	prefix string
}

func (p prefixed) Write(b []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// isJournal says whether f is the stream that systemd says leads to the
// journal: JOURNAL_STREAM is its device and inode (systemd.exec(5)). The
// variable alone says nothing, since it is inherited by those whose output
// goes elsewhere.
func isJournal(f *os.File, stream string) bool {
	if stream == "" {
		return false
	}
	st, err := f.Stat()
	if err != nil {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", sys.Dev, sys.Ino)
}
