package keeper

import (
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
)

// Every limit of the keeper. docs/limits.md lists them.
const (
	// MaxSlots is how many maps can keep replies on an entry.
	MaxSlots = 16

	// minLife is how long a policy counts after its fetch, whatever its max_age.
	minLife = time.Minute

	// tableBytes bounds the table of entries before the store.
	tableBytes = 8 << 20
	// tableShards spreads the table's lock.
	tableShards = 32
	// entryOverhead is what an entry costs beside its strings, about.
	entryOverhead = 384
	// replyOverhead is what a kept reply costs beside its bytes.
	replyOverhead = 32
	// doorkeeperUses is how many first uses are remembered before the
	// memory of them is wiped: an entry joins the table on its second.
	doorkeeperUses = 16 << 10
	// doorkeeperBits is how many bits there are for each of them: with more,
	// fewer first uses are taken for second ones.
	doorkeeperBits = 32

	// usedBits is the size of each of the two bitmaps of used domains.
	usedBits = 1 << 24
	// usedPeriod is how long a bitmap collects before it is rotated.
	usedPeriod = 24 * time.Hour

	// recheckSlots is how many domains' last rechecks are remembered, and
	// recheckWays in how many of the slots one may stand.
	recheckSlots = 1 << 16
	recheckWays  = 4
	// ClockSlack is how far ahead of the clock a policy's fetch may be, and how
	// far the clock may run away between two looks.
	ClockSlack = time.Minute
	// lostAfter is by how much a policy in use may be overdue before it is fetched
	// because it is asked for: the index of what is due may have lost it.
	lostAfter = 24 * time.Hour
	// recheckQueue is how many rechecks wait; one more is dropped and counted.
	recheckQueue = 1024
	// urgentQueue is how many fetches for a changed id wait outside the store.
	urgentQueue = 1024

	// maxNegative and maxNegativeBytes bound the negative results, each of which
	// counts negativeOverhead bytes beside its strings.
	maxNegative      = 1 << 16
	maxNegativeBytes = 16 << 20
	negativeOverhead = 256
	// minNegative and maxNegativeTTL bound how long the DNS' denial is kept.
	minNegative    = time.Minute
	maxNegativeTTL = time.Hour
	// firstBackoff and maxBackoff bound the wait after a failure
	// (RFC 8461, 3.3: five minutes or more).
	firstBackoff = 5 * time.Minute
	maxBackoff   = time.Hour

	// hostFetches is how many fetches there are at once at one address, for lookups
	// and again for the refresher.
	hostFetches = 8
	// maxFlights is how many discoveries for lookups there are at once for each
	// of [lookup] concurrency, those that wait for a turn included. One more is
	// answered at once as if its domain had no policy.
	maxFlights = 16
	// discoverySteps bounds a discovery that outlives its lookup: the DNS
	// part, and what comes after the fetch.
	discoverySteps = time.Minute

	// commitWait is how long a find waits for the disk before it is answered
	// from memory.
	commitWait = 2 * time.Second
	// commitLinger is how long what nobody waits for gathers company before it
	// is written: a crash in that time costs a refresh done again.
	commitLinger = 5 * time.Second
	// commitPolicies and commitBytes bound one commit.
	commitPolicies = 64
	commitBytes    = 4 << 20
	// maxPending and maxPendingBytes bound what waits for the disk.
	maxPending      = 4096
	maxPendingBytes = 16 << 20
	// commitRetryFirst and commitRetryMax bound the pause after a failed commit.
	commitRetryFirst = time.Second
	commitRetryMax   = 30 * time.Second
	// finalCommits is how long what is pending is still written at the end.
	finalCommits = 5 * time.Second

	// minFetchInterval is how often the refresher asks a policy host at most that
	// gives it a policy.
	minFetchInterval = 10 * time.Minute
	// confirmAfter and confirmWithin: when a new id with an unchanged text is
	// looked at again (RFC 8461, 8.1).
	confirmAfter  = 10 * time.Minute
	confirmWithin = 60 * time.Minute
	// dayOfFetch: a policy in use is fetched again after 0.7 to 1.0 of it.
	dayOfFetch = 24 * time.Hour
	// keepExpired is how long an expired policy stays in the store.
	keepExpired = 7 * 24 * time.Hour
	// shortLived is the max_age below which a policy waits in a line of its own.
	shortLived = 24 * time.Hour
	// slowFetch is how long a fetch may take before the next one waits in the
	// line of those that failed.
	slowFetch = 5 * time.Second
	// maxLately bounds the memory of which unreadable records were passed over
	// in the last ten minutes.
	maxLately = 1 << 15
	// dueBatch is how many due records are read at once, and dueBatchMost if
	// so many of them have to be passed over: what the store reads at most.
	dueBatch     = 64
	dueBatchMost = cache.MaxPage
	// idlePoll is how long the refresher sleeps at most. What is written to be
	// due before wakes it.
	idlePoll = time.Minute
	// shortSlots, unusedSlots and troubledSlots are the eighths of a line's slots
	// that policies with a max_age below a day, those not in use, and those after
	// a failed or slow try may hold at once; urgentSlots those that are wanted at
	// once, of whatever kind they are.
	urgentSlots   = 4
	shortSlots    = 3
	unusedSlots   = 2
	troubledSlots = 2
	// troubledTurn: every so many turns the troubled lane goes first.
	troubledTurn = 4
	// visitsPerSecond paces looking at due records for which the network need
	// not be asked, after a long stop above all.
	visitsPerSecond = 500
	// purgeEvery and purgeBatch pace the deletion of long expired policies.
	purgeEvery = 10 * time.Minute
	// purgeAfterJump is how long nothing is deleted after the clock has jumped
	// ahead, or may have before the start.
	purgeAfterJump = 24 * time.Hour
	purgeBatch     = 500

	// upkeepEvery is how often the state is looked after.
	upkeepEvery = time.Minute
	// troubleAfter is how long nothing may succeed before it is an error, and how
	// long ago the last failure may be then.
	troubleAfter = 5 * time.Minute
	// troubleDomains is for how many different domains something must have
	// failed before the fault is taken to be ours.
	troubleDomains = 3
	// LateAfter is how far behind the refresher may be before it is an error in
	// the log, and a trouble to package observe.
	LateAfter = time.Hour

	// logsPerSecond and logBurst bound the lines that hostile domains can cause:
	// about policies held, and apart from those about discoveries.
	logsPerSecond = 5
	logBurst      = 50
	// outageLogEvery and outageLogBurst bound them while nothing succeeds.
	outageLogEvery = 10 * time.Minute
	outageLogBurst = 5
)
