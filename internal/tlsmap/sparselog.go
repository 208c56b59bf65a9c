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
	logSlots       = 4096          // lines remembered, so as to write one once
	logAgain       = time.Hour     // then the same line is written again
	linesPerSecond = rate.Limit(5) // of one kind
	lineBurst      = 50            // lines of one kind
	logShown       = 512           // bytes of a key or reply in a line
)

// A sparseLog writes one kind of line about lookups, whose number it does not
// let grow with that of the lookups: the same line once an hour, and no more
// than the limit.
type sparseLog struct {
	log     *slog.Logger
	level   slog.Level
	message string
	seed    maphash.Seed
	limit   *rate.Limiter
	noted   [logSlots]atomic.Uint64 // a hash of what was logged last in each slot
	dropped atomic.Uint64           // lines over the limit since the last one
}

func (s *sparseLog) init(log *slog.Logger, level slog.Level, message string) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s.log, s.level, s.message = log, level, message
	s.seed, s.limit = maphash.MakeSeed(), rate.NewLimiter(linesPerSecond, lineBurst)
}

// due says whether a line about this lookup is to be printed now.
func (s *sparseLog) due(mapName string, key, reply []byte) bool {
	now := time.Now()
	hash := s.hash(mapName, key, reply, uint64(now.Unix())/uint64(logAgain/time.Second))
	slot := &s.noted[hash%logSlots]
	before := slot.Swap(hash)
	if before == hash {
		return false
	}
	if !s.limit.AllowN(now, 1) {
		slot.CompareAndSwap(hash, before) // it was not written: the next one may be
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

func (s *sparseLog) hash(mapName string, key, reply []byte, period uint64) uint64 {
	// No separator is needed: a mix-up costs a line in the log.
	h := maphash.Bytes(s.seed, key) ^ maphash.String(s.seed, mapName)*3 ^ maphash.Bytes(s.seed, reply)*5
	return h + period
}

func shown(b []byte) string {
	if len(b) > logShown {
		return string(b[:logShown]) + "..."
	}
	return string(b)
}
