// Package cache keeps MTA-STS policies in one bbolt file: get, put, the order
// in which they are due, the order in which they are given up when the file is
// full, listing, and salvage of what a damaged file still holds. It knows what
// a policy's mode and life are, and nothing of fetching or replying.
package cache

import (
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A Record is a policy that was fetched over HTTPS, and what we know of it.
// Times are kept in whole seconds; a zero time is kept as zero.
type Record struct {
	Domain    string // the policy domain: A-labels, lower case, no trailing dot
	ID        string // the id of the TXT record that goes with Text; empty if none was seen
	PendingID string // a new id under which the text was still the old one (RFC 8461, 8.1); empty if none
	Mode      policy.Mode
	Text      []byte // the policy as served
	Ready     []byte // what a reply needs, ready to use; its format is the caller's

	Fetched time.Time // when Text was last fetched
	Expires time.Time // when it runs out: Fetched plus max_age
	Checked time.Time // when the TXT record was last seen
	Used    time.Time // the last known use, to the day; zero: never

	CheckAt       time.Time // when the TXT record is next asked for
	FetchAt       time.Time // when the policy is next fetched, if it was used since Fetched
	FetchUnusedAt time.Time // and if it was not

	Failures  uint32    // failed fetches in a row
	FailedAt  time.Time // when the last one failed; zero: none did
	LastError string    // why; printable
	Slow      bool      // the last fetch succeeded, but took long

	Lane Lane      // in which line it waits for Due
	Due  time.Time // when the refresher looks at it next
}

// A Lane is one of the lines in which records wait for the refresher. Which
// is which is the caller's; lanes are read independently of each other.
type Lane uint8

// MaxLanes bounds the lanes: 0 to MaxLanes-1.
const MaxLanes = 16
