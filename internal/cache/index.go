package cache

import (
	"encoding/binary"
	"math"
)

// The buckets of the file. Old versions also kept a bucket evict, which is ignored.
var (
	bucketMeta   = []byte("meta")   // the keys below
	bucketPolicy = []byte("policy") // domain -> value
	bucketDue    = []byte("due")    // lane, expiry slot, due, domain: what Due reads
	bucketExpiry = []byte("expiry") // expires, domain: what Purge reads, and a full store first
	bucketExempt = []byte("exempt") // domain -> until; made with the first exemption

	buckets = [][]byte{bucketMeta, bucketPolicy, bucketDue, bucketExpiry} // that each file has
)

// The keys of the meta bucket.
var (
	keySchema  = []byte("schema")   // uint32
	keyCounts  = []byte("counts")   // the policies by mode, uint64 each
	keyNewest  = []byte("newest")   // int64, Unix seconds: Options.Now at the last commit
	keyInDoubt = []byte("in-doubt") // int64, Unix seconds: Options.InDoubtSince at the last commit, 0: the clock was not in doubt
	keySalvage = []byte("salvage")  // names of the files that are still to be searched, a line each
	keyFleet   = []byte("fleet")    // checksum and stamps of the orders that the fleet gave
)

// schemaVersion counts the layouts of the file, that of the values included.
const schemaVersion = 1

const (
	// dueSlot, in seconds, is the precision with which the due index is ordered by the
	// life left. Due jumps from slot to slot; a year has 1,461.
	dueSlot       = 6 * 3600
	secondsPerDay = 24 * 3600

	// Where the parts of a key begin.
	dueAtSlot      = 1
	dueAtTime      = dueAtSlot + 4
	dueAtDomain    = dueAtTime + 8
	expiryAtDomain = 8
)

// maxLanes bounds the lanes in a file. Old versions had seven.
const maxLanes = 16

func laneOf(n uint8) Lane {
	switch {
	case n == 7:
		return LaneTroubled
	case n > 0 && n < 7:
		return LaneNormal
	}
	return Lane(n)
}

// entriesOf returns the index keys of raw, the value of domain, nil where it has no
// entry, and its position in the counts. For a damaged value it uses the header, so
// that put and delete agree.
func entriesOf(domain, raw []byte) (due, expiry []byte, count uint8) {
	var h header
	if !h.read(raw) {
		return nil, nil, 0
	}
	if validMode(h.Mode) {
		count = h.Mode
	}
	if h.Due != 0 {
		// A max_age below a day counts as a day: otherwise these policies would always
		// come first. Old versions had a lane for them instead.
		urgency := h.Expires
		if Lane(h.Lane) >= LaneNormal {
			urgency = max(urgency, h.Fetched+secondsPerDay)
		}
		due = append(make([]byte, 0, dueAtDomain+len(domain)), h.Lane)
		due = binary.BigEndian.AppendUint32(due, uint32(min(positive(urgency)/dueSlot, math.MaxUint32)))
		due = append(binary.BigEndian.AppendUint64(due, positive(h.Due)), domain...)
	}
	expiry = binary.BigEndian.AppendUint64(make([]byte, 0, expiryAtDomain+len(domain)), positive(h.Expires))
	return due, append(expiry, domain...), count
}

func decode(b []byte, to any) bool {
	_, err := binary.Decode(b, binary.LittleEndian, to)
	return err == nil
}

func encoded(v any) []byte {
	b, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err) // v has a fixed size
	}
	return b
}

// positive keeps the byte order of a key that of its time: before 1970 is 1970.
func positive(seconds int64) uint64 { return uint64(max(seconds, 0)) }
