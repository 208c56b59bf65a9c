package dane

import "time"

// The limits of the checks. They stand together so that they can be read
// together.
const (
	maxHosts    = 64  // MX hosts of a next-hop that are looked at, the most preferred first
	maxMX       = 128 // MX hosts that MX returns
	hostsAtOnce = 4   // of one next-hop
	maxChecks   = 256 // next-hops that are checked at once; each asks at most hostsAtOnce questions at once
	loggedHosts = 8   // named in one line of the log

	panicEvery = time.Second // between two lines in the log about panics

	// logsPerSecond and logBurst bound each of the two kinds of lines about single
	// next-hops, of which there may be as many as somebody likes.
	logsPerSecond = 5
	logBurst      = 50

	maxFindings = 10_000  // findings held, some hundred bytes each
	maxMXSets   = 4_096   // MX answers held
	maxMXBytes  = 4 << 10 // of names in one of them; larger ones are asked for anew

	// checkTime is for one check, the wait for its turn included. What is
	// not decided by then is not decided.
	checkTime = 15 * time.Second

	// settleTime is for the other hosts once one with usable records is
	// found, which decides: they are looked at for the log only. Likewise for
	// the other names of a probe that has decided.
	settleTime = 2 * time.Second

	// What is found is kept for the TTL of the records, within bounds.
	minKeep  = time.Minute
	maxKeep  = time.Hour
	failKeep = 30 * time.Second // what failed: the MTA tries again in some minutes

	// A finding that is asked for in the last part of its life is renewed
	// while it is answered from: one in renewPart of the life.
	renewPart = 4

	// The probe of the resolver.
	probeTime  = 15 * time.Second // for all of its questions
	probeEvery = 10 * time.Minute // after a probe that found a resolver that validates
	probeLook  = 10 * time.Second // between two looks whether it is time
	probeRetry = time.Minute      // after one that did not, or got no answer; an older one is no help for a next-hop that comes to have DANE
)
