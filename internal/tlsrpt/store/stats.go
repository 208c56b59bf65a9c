package store

import "sync/atomic"

// Stats are the numbers of a store. Counts are of sessions and since Open, where nothing
// else is said.
type Stats struct {
	Err     error  // why nothing can be stored now; nil: it can
	Damaged uint64 // files that were set aside

	LogSize           int64 // bytes that wait to be merged
	UsedSize, MaxSize int64 // bytes of the file

	Merged  uint64
	Dropped map[string]uint64
}

type counts struct {
	Merged, Late, Full, Crowded, Unknown, LogFull, Lost, TornBytes, Damaged atomic.Uint64
}

// Stats returns the numbers of the store. Dropped has these reasons:
//
//	late        their day was closed
//	full        a domain or policy not seen that day, and the file has MaxSize
//	policies    the 65th policy of a domain's day
//	policy      the text of their policy was lost with a file or for want of room
//	log         the log has 256 MiB
//	write       a write to the log failed, and it could not be said how far it came
//	torn-bytes  bytes, not sessions: a crash cut the log
func (s *Store) Stats() Stats {
	c := &s.counts
	st := Stats{
		Damaged: c.Damaged.Load(), LogSize: s.logSize.Load(), UsedSize: s.used(), MaxSize: s.o.MaxSize, Merged: c.Merged.Load(),
		Dropped: map[string]uint64{"late": c.Late.Load(), "full": c.Full.Load(), "policies": c.Crowded.Load(),
			"policy": c.Unknown.Load(), "log": c.LogFull.Load(), "write": c.Lost.Load(), "torn-bytes": c.TornBytes.Load()},
	}
	if s.file.Load() == nil {
		st.Err = *s.why.Load()
	}
	return st
}
