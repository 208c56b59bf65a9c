package keeper

import (
	"context"
	"time"
)

// A Fleet brings what other relays know; *fleet.Fleet is one. Each method ends within
// 100 ms, and without an answer the keeper goes on as one without a fleet.
type Fleet interface {
	// Find returns the policy of a domain that some relay fetched: verified, alive, and not
	// to be forgotten.
	Find(ctx context.Context, domain string) (Foreign, bool)
	// Announce tells the others of a policy that this relay fetched. It does not wait.
	Announce(Foreign)
	// Lease says whether this relay, of all, is to do something for a domain. release lets
	// another one.
	Lease(ctx context.Context, kind Lease, domain string, long time.Duration) (release func(), ours bool)
}

// A Lease is what one relay does for all.
type Lease string

// The leases.
const (
	LeaseFetch Lease = "l" // fetch the policy
	LeaseCheck Lease = "c" // look at the TXT record
)
