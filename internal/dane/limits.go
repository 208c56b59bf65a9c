package dane

import "time"

const (
	maxHosts        = 64  // MX hosts of a next-hop that are looked at, the most preferred first
	hostsAtOnce     = 4   // of one next-hop
	maxChecks       = 256 // checks and MX lookups under way; each asks at most hostsAtOnce questions at once
	maxDomainChecks = 4   // of them, for the next-hops and ports of one domain
	maxFindings     = 10_000

	checkTime  = 15 * time.Second
	settleTime = 2 * time.Second // for the lookups that are left when one has decided: they are for the log only

	// A finding is kept for the TTL of its records, within these bounds.
	minKeep  = time.Minute
	maxKeep  = time.Hour
	failKeep = 30 * time.Second // after a failure: the MTA tries again in some minutes

	probeTime  = 15 * time.Second
	probeEvery = 10 * time.Minute // after a probe that found a validating resolver
	probeRetry = time.Minute      // after one that did not; an older one does not vouch for a next-hop that gains DANE
	probeLook  = 10 * time.Second // between two looks whether a probe is due

	loggedHosts   = 8 // named in one line of the log
	logsPerSecond = 5 // lines about single next-hops
	logBurst      = 50
	panicEvery    = time.Second // between two lines about panics
)
