package tlsmap

import (
	"context"
	"hash/maphash"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Limits of what is logged about lookups.
const (
	logSlots       = 4096          // lines remembered, to write each once
	logAgain       = time.Hour     // then the same line is written again
	linesPerSecond = rate.Limit(5) // of one kind
	lineBurst      = 50            // lines of one kind
	logShown       = 512           // bytes of a key or reply in a line
)

// A sparseLog writes one kind of line about lookups: the same line once an hour,
// and linesPerSecond in all.
type sparseLog struct {
	log     *slog.Logger
	level   slog.Level
	message string
	seed    maphash.Seed
	limit   *rate.Limiter
	written [logSlots]atomic.Uint64 // a hash of the last line in each slot
	dropped atomic.Uint64           // lines over the limit since the last one
}

func newSparseLog(log *slog.Logger, level slog.Level, message string) *sparseLog {
	return &sparseLog{log: log, level: level, message: message, seed: maphash.MakeSeed(), limit: rate.NewLimiter(linesPerSecond, lineBurst)}
}

// due reports whether to print the line that these values identify.
func (s *sparseLog) due(mapName string, key, reply []byte) bool {
	now := time.Now()
	var h maphash.Hash
	h.SetSeed(s.seed)
	h.WriteString(mapName)
	h.Write(key)
	h.Write(reply)
	hash := h.Sum64() + uint64(now.Unix())/uint64(logAgain/time.Second)
	slot := &s.written[hash%logSlots]
	before := slot.Swap(hash)
	if before == hash {
		return false
	}
	if !s.limit.AllowN(now, 1) {
		slot.CompareAndSwap(hash, before) // not written: the next one may be
		s.dropped.Add(1)
		return false
	}
	return true
}

// print writes a line.
func (s *sparseLog) print(attrs ...slog.Attr) {
	if n := s.dropped.Swap(0); n > 0 {
		attrs = append(attrs, slog.Uint64("not_logged", n))
	}
	s.log.LogAttrs(context.Background(), s.level, s.message, attrs...)
}
