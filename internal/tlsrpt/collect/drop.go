package collect

import "sync/atomic"

// A Drop is why something was not used.
type Drop int

// The reasons.
const (
	DropTooLong   Drop = iota // a datagram of more than MaxDatagram bytes
	DropMalformed             // a datagram that is no JSON, or another JSON than libtlsrpt's
	DropVersion               // a datagram of an unknown version of the format
	DropPolicies              // a policy after the eighth
	DropPolicy                // a policy of an unknown type or without a result, or a datagram without a policy
	DropDomain                // a session whose recipient or policy domain is no name of a mail domain
	DropStrings               // a policy string or MX pattern after the 1,200th
	DropDetails               // a failure detail after the 64th
	DropName                  // a host name, pattern or address that is none; left out of its session
	DropText                  // a text that is too long or not printable; left out of its session
	DropRing                  // a datagram for which the ring had no room
	DropBatch                 // a session for which the batch had no room, because the disk does not take batches
	drops
)

func (d Drop) String() string {
	return [drops]string{"too-long", "malformed", "version", "policies", "policy", "domain",
		"strings", "details", "name", "text", "ring", "batch"}[d]
}

// Drops counts by reason. It is safe for concurrent use.
type Drops [drops]atomic.Uint64

// Add adds n to the count of a reason.
func (d *Drops) Add(why Drop, n uint64) { d[why].Add(n) }

// Counts returns the counts of all reasons by name.
func (d *Drops) Counts() map[string]uint64 {
	counts := make(map[string]uint64, drops)
	for why := range drops {
		counts[why.String()] = d[why].Load()
	}
	return counts
}
