package cache

import (
	"encoding/binary"
	"math"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// The buckets of the file.
var (
	bucketMeta   = []byte("meta")   // schema, counts, newest
	bucketPolicy = []byte("policy") // domain -> value
	bucketDue    = []byte("due")    // lane, expiry slot, due, domain: what the refresher reads
	bucketExpiry = []byte("expiry") // expires, domain: what Purge reads, and eviction first
	bucketEvict  = []byte("evict")  // class, day of last use, domain: what eviction reads then
	bucketExempt = []byte("exempt") // domain -> until, set at run time; made when there is one
)

// The keys of the meta bucket.
var (
	keySchema = []byte("schema") // uint32
	keyCounts = []byte("counts") // numCounts times uint64
	keyNewest = []byte("newest") // int64, Unix seconds: the latest time in what was written
)

// schemaVersion counts the layouts of the file, that of the values included.
const schemaVersion = 1

const (
	// expirySlot is the width of the slots, in seconds, by which the due
	// index is ordered first. It bounds how far what is due may come out of
	// the order of life left; and the number of slots, a year's 1,461, bounds
	// what Due has to look at when nothing is due.
	expirySlot = 6 * 3600

	secondsPerDay = 24 * 3600
)

// The classes of the eviction order; lower ones are given up first.
const (
	classOther    = 0 // none and testing
	classEnforced = 1
)

// keys are a record's entries in the indexes.
type keys struct {
	due    []byte // nil: it waits for nothing
	expiry []byte
	evict  []byte
}

// keysOf returns the entries of v, which is stored under domain.
func keysOf(domain []byte, v Value) keys {
	k := keys{
		expiry: expiryKey(v.Expires(), domain),
		evict:  evictKey(classOf(v.Mode()), v.Used(), domain),
	}
	if v.due() != 0 {
		k.due = dueKey(v.lane(), v.Expires(), v.due(), domain)
	}
	return k
}

func dueKey(lane Lane, expires, due int64, domain []byte) []byte {
	k := append(make([]byte, 0, dueDomain+len(domain)), byte(lane))
	k = binary.BigEndian.AppendUint32(k, slotOf(expires))
	k = binary.BigEndian.AppendUint64(k, positive(due))
	return append(k, domain...)
}

// Where the parts of a due key begin.
const (
	dueSlot   = 1
	dueDue    = dueSlot + 4
	dueDomain = dueDue + 8
)

func expiryKey(expires int64, domain []byte) []byte {
	k := binary.BigEndian.AppendUint64(make([]byte, 0, expiryDomain+len(domain)), positive(expires))
	return append(k, domain...)
}

const expiryDomain = 8

func evictKey(class byte, used int64, domain []byte) []byte {
	k := append(make([]byte, 0, evictDomain+len(domain)), class)
	k = binary.BigEndian.AppendUint32(k, dayOf(used))
	return append(k, domain...)
}

const (
	evictDay    = 1
	evictDomain = evictDay + 4
)

func classOf(m policy.Mode) byte {
	if m == policy.ModeEnforce {
		return classEnforced
	}
	return classOther
}

// positive keeps the byte order of a key that of its time: before 1970 is 1970.
func positive(seconds int64) uint64 { return uint64(max(seconds, 0)) }

func slotOf(expires int64) uint32 { return clamp32(positive(expires) / expirySlot) }
func dayOf(used int64) uint32     { return clamp32(positive(used) / secondsPerDay) }

func clamp32(n uint64) uint32 { return uint32(min(n, math.MaxUint32)) }

// numCounts: one for each mode, and the first for values whose mode cannot be
// read.
const numCounts = 4

// counts are the numbers of policies by mode.
type counts [numCounts]int64

// countOf returns the index of raw's count. It is right for a damaged value
// too, as long as it is the same when that is put and when it is taken away.
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

func decodeCounts(b []byte) counts {
	var c counts
	if len(b) == numCounts*8 {
		for i := range c {
			c[i] = int64(binary.LittleEndian.Uint64(b[i*8:]))
		}
	}
	return c
}
