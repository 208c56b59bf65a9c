package keeper

import "time"

// Every limit of the keeper. docs/limits.md has those that an operator can meet.
const (
	MaxSlots   = 16          // rendered replies on an Entry
	clockSlack = time.Minute // how far ahead of the clock the fetch of a policy may be
	LateAfter  = time.Hour   // the lateness of the refresher that is a condition

	clockStep  = time.Hour // a wall clock that moves by more is in doubt
	clockDoubt = oneDay    // for so long; see Clock

	minLife = time.Minute // how long a policy counts after its fetch, whatever its max_age

	memoryBytes     = 8 << 20  // of policies in memory
	negativeBytes   = 16 << 20 // of negative results
	overheadBytes   = 512      // of either, beside strings
	doorkeeperSlots = 16 << 10 // first uses remembered
	recentDomains   = 32 << 10 // domains whose last recheck, and last fetch, is remembered

	// Discoveries. A fetch older than slowFetch no longer counts at its address.
	slowFetch          = 5 * time.Second
	fetchesAtHost      = 8    // younger than slowFetch, at one address (IPv6: a /64)
	connectionsHost    = 32   // at one address
	fetchesNetwork     = 64   // at one network: a /24, a /48
	maxWaiting         = 1024 // fetches that wait for a place; one more fails at once
	maxQuestions       = 3072 // discoveries in their DNS part
	questionsPerDomain = 64   // of them, below one registrable domain
	discoverySteps     = time.Minute

	// Of what lookups of held policies cause.
	maxRechecks        = 32   // TXT questions at once
	maxAttention       = 1024 // domains that wait
	attentionPerSecond = 50

	learnsPerSecond = 50 // discoveries that no mail waits for

	minNegative  = time.Minute     // a denial by the DNS is kept at least so long
	maxNegative  = time.Hour       // and at most so long
	firstBackoff = 5 * time.Minute // after a failure (RFC 8461, 3.3: five minutes or more)
	maxBackoff   = time.Hour

	commitWait      = 2 * time.Second  // a new policy waits so long for the disk, then it is answered from memory
	commitStuck     = 10 * time.Second // a commit under way for so long is an error
	commitEvery     = 5 * time.Second  // lazy changes; also the pause after a failed commit
	commitPolicies  = 64
	maxPending      = 4096 // changes that wait for the disk
	maxPendingBytes = 8 << 20
	fullFor         = time.Hour       // after the last policy that the store had no room for
	finalCommits    = 5 * time.Second // for what is pending at the end

	minFetchInterval = 10 * time.Minute // between two fetches of one domain by the refresher
	confirmAfter     = 10 * time.Minute // a new id with an unchanged text: the second fetch (RFC 8461, 8.1)
	confirmWithin    = 60 * time.Minute
	oneDay           = 24 * time.Hour  // see timing
	maxUnattended    = 8               // see timing
	dueBatch         = 125             // due records read at once
	idlePoll         = 5 * time.Minute // the refresher sleeps no longer
	overdueBy        = time.Hour       // see turns
	visitsPerSecond  = 500             // due records looked at

	// Of a fleet.
	silentFor     = 700 * time.Millisecond // a first contact waits for the TXT record where the fleet has a policy
	fetchLease    = 45 * time.Second       // to fetch a policy for all relays
	askFleetEvery = time.Minute            // for a domain that has failed

	keepExpired = 7 * 24 * time.Hour // an expired policy stays in the store, in case the clock was ahead
	purgeEvery  = 10 * time.Minute
	purgeBatch  = 500
	upkeepEvery = time.Minute

	failingAfter   = 5 * time.Minute // without any success,
	failingDomains = 3               // and with so many domains tried, DNS or HTTPS counts as failing

	linesPerSecond = 5 // of the log, about single domains
	lineBurst      = 50
)
