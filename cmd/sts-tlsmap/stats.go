package main

import (
	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// stats are the daemon's numbers, as /v1/stats has them.
type stats struct {
	Cache     cacheStats      `json:"cache"`
	Keeper    keeper.Stats    `json:"keeper"`
	Maps      tlsmap.Stats    `json:"maps"`
	Socketmap socketmap.Stats `json:"socketmap"`
}

type cacheStats struct {
	Policies   map[string]int64 `json:"policies"` // by mode
	UsedBytes  int64            `json:"used_bytes"`
	FileBytes  int64            `json:"file_bytes"`
	MaxBytes   int64            `json:"max_bytes"`
	Damaged    uint64           `json:"damaged"`
	Unreadable uint64           `json:"unreadable"`
	Rebuilds   uint64           `json:"rebuilds"`
	Salvage    *salvage         `json:"salvage,omitempty"` // at the start
	Rebuild    *salvage         `json:"rebuild,omitempty"` // the last one
}

// A salvage says what became of a damaged file.
type salvage struct {
	Why       string `json:"why"`
	MovedTo   string `json:"moved_to"`
	Recovered int    `json:"recovered"`
	Damaged   int    `json:"damaged"`
	Lost      int    `json:"lost"`
	Unopened  bool   `json:"unopened,omitempty"` // how many were lost is not known
}

func salvageOf(r *cache.Report) *salvage {
	if r == nil {
		return nil
	}
	s := &salvage{MovedTo: r.MovedTo, Recovered: r.Recovered, Damaged: r.Damaged, Lost: r.Lost, Unopened: r.Unopened}
	if r.Why != nil {
		s.Why = r.Why.Error()
	}
	return s
}

// stats returns the numbers for /v1/stats.
func (s *service) stats() any {
	c := s.store.Stats()
	byMode := make(map[string]int64, len(c.ByMode))
	for mode, n := range c.ByMode {
		byMode[policy.Mode(mode).String()] = n
	}
	return stats{
		Cache: cacheStats{
			Policies: byMode, UsedBytes: c.UsedSize, FileBytes: c.FileSize, MaxBytes: c.MaxSize,
			Damaged: c.Damaged, Unreadable: c.Unreadable, Rebuilds: c.Rebuilds,
			Salvage: salvageOf(c.Salvage), Rebuild: salvageOf(c.Rebuild),
		},
		Keeper: s.keeper.Stats(), Maps: s.maps.Stats(), Socketmap: s.sockets.Stats(),
	}
}
