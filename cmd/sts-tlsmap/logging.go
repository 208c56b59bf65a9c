package main

import (
	"fmt"
	"log/slog"
	"os"
	"syscall"
)

// newLogger returns a logger to f. The journal adds the time by itself; then
// the lines come without.
func newLogger(f *os.File, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if isJournal(f, os.Getenv("JOURNAL_STREAM")) {
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime && len(groups) == 0 {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(f, o))
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
