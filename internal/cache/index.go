package cache

import (
	"encoding/binary"
	"math"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
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
	keySchema  = []byte("schema")  // uint32
	keyCounts  = []byte("counts")  // numCounts times uint64
	keyNewest  = []byte("newest")  // int64, Unix seconds: the wall clock at the last commit
	keySalvage = []byte("salvage") // names of the files that are still to be searched, a line each
)

// schemaVersion counts the layouts of the file, that of the values included.
const schemaVersion = 1

const (
	// dueSlotWidth, in seconds, is how exactly the due index is ordered by the life
	// that policies have left. Due jumps from slot to slot, of which a year has 1,461.
	dueSlotWidth  = 6 * 3600
	secondsPerDay = 24 * 3600
)

// entries are the keys of a stored value in the indexes; nil: there is none.
type entries struct{ due, expiry []byte }

// entriesOf returns the entries of raw, which is stored under domain. For a value
// with a wrong checksum it returns what the header says, right or wrong.
func entriesOf(domain, raw []byte) entries {
	if len(raw) < headerSize {
		return entries{}
	}
	v := value(raw)
	e := entries{expiry: expiryKey(v.time(offExpires), domain)}
	if due := v.time(offDue); due != 0 {
		e.due = dueKey(v[offLane], v.urgency(), due, domain)
	}
	return e
}

// urgency is the time by which the due index is ordered. A policy with a short
// max_age counts as one of a day, or it would always come before all others. Old
// versions had a lane for such policies, and left their time as it was.
func (v value) urgency() int64 {
	if Lane(v[offLane]) < LaneNormal {
		return v.time(offExpires)
	}
	return max(v.time(offExpires), v.time(offFetched)+secondsPerDay)
}

// maxLanes bounds the lanes that a file may have.
const maxLanes = 16

// laneOf returns the lane that the number in a file stands for.
func laneOf(n byte) Lane {
	switch {
	case n == 7:
		return LaneTroubled
	case n > 0 && n < 7:
		return LaneNormal
	}
	return Lane(n)
}

// Where the parts of the keys begin.
const (
	dueSlot      = 1
	dueTime      = dueSlot + 4
	dueDomain    = dueTime + 8
	expiryDomain = 8
)

func dueKey(lane byte, expires, due int64, domain []byte) []byte {
	k := append(make([]byte, 0, dueDomain+len(domain)), lane)
	k = binary.BigEndian.AppendUint32(k, uint32(min(positive(expires)/dueSlotWidth, math.MaxUint32)))
	k = binary.BigEndian.AppendUint64(k, positive(due))
	return append(k, domain...)
}

func expiryKey(expires int64, domain []byte) []byte {
	k := binary.BigEndian.AppendUint64(make([]byte, 0, expiryDomain+len(domain)), positive(expires))
	return append(k, domain...)
}

// positive keeps the byte order of a key that of its time: before 1970 is 1970.
func positive(seconds int64) uint64 { return uint64(max(seconds, 0)) }

// numCounts: one for each mode, and the first for values whose mode cannot be read.
const numCounts = 4

const _ = uint(numCounts - 1 - policy.ModeEnforce) // there is a count for each mode

type counts [numCounts]int64

// countOf returns the index of the count of raw. The answer is the same when a
// damaged value is put and when it is taken away.
func countOf(raw []byte) int {
	if len(raw) > offMode && validMode(policy.Mode(raw[offMode])) {
		return int(raw[offMode])
	}
	return 0
}

func (c counts) encode() []byte {
	b := make([]byte, 0, numCounts*8)
	for _, n := range c {
		b = binary.LittleEndian.AppendUint64(b, uint64(max(n, 0)))
	}
	return b
}

func decodeCounts(b []byte) (c counts) {
	if len(b) == numCounts*8 {
		for i := range c {
			c[i] = int64(binary.LittleEndian.Uint64(b[i*8:]))
		}
	}
	return c
}
