package main

// A row is one line of the table.
type row struct {
	name  string
	what  string  // what is measured
	bound float64 // the largest permitted value
	unit  string  // of value and bound; empty for a ratio
	run   rowFunc
}

// A rowFunc measures a row. Everything that it starts through b ends with the
// row.
type rowFunc func(b *bench) (result, error)

// A result is a row's measurement.
type result struct {
	value     float64 // in the row's unit; the median of several
	low, high float64 // the range of several
	count     int     // how many values low and high span; 0 for a single value
	counted   string  // what count counts: "pairs"
	from, to  float64 // confidence interval of the median of pairs; else 0
	note      string  // remarks
}

// rows are measured and printed in this order.
var rows = []row{
	{
		name:  "repeated lookup",
		what:  "CPU time of the daemon for a lookup of one key, map postfix, at 20,000 lookups a second from 16 clients; a ratio to a bare netstring echo server with replies of equal length under the same load",
		bound: 1.10,
		run:   repeatedLookup,
	},
	{
		name:  "repeated lookup in a fleet",
		what:  "the same of a relay with a fleet, whose server answers",
		bound: 1.10,
		run:   repeatedInFleet,
	},
	{
		name:  "random lookup",
		what:  "CPU time of the daemon beyond the echo server's for a lookup of random keys out of 1,000,000 stored policies, under the same load; each was looked up once before, and the daemon checks up to 50 TXT records a second meanwhile",
		bound: 9,
		unit:  "µs",
		run:   randomLookup(paced),
	},
	{
		name:  "random lookup, closed loop",
		what:  "the same with 16 clients that ask again at once",
		bound: 6,
		unit:  "µs",
		run:   randomLookup(closedLoop),
	},
	{
		name:  "first discovery",
		what:  "CPU time of the daemon for a lookup of an unknown domain, 64 at once, the commit included; a ratio to bare TXT, AAAA and A queries with miekg/dns and a bare HTTPS GET with net/http for the same domain",
		bound: 1.30,
		run:   firstDiscovery,
	},
	{
		name:  "first contact in a fleet",
		what:  "CPU time of the daemon for a lookup of a domain that another relay has found, 64 at once, the commit included, beyond a bare TXT query with miekg/dns and a bare GET for the same domain",
		bound: 300,
		unit:  "µs",
		run:   firstContact,
	},
	{
		name:  "policy from the fleet",
		what:  "CPU time of package fleet for a policy that another relay has found: the question to the server, HMAC, life and grammar, 64 at once over 8 connections; a ratio to a bare GET of the same client and values",
		bound: 1.5,
		run:   foundPolicy,
	},
	{
		name:  "exec to first answer",
		what:  "wall-clock time from exec of the daemon to its first answer, with 1,000,000 policies in a file that is in the page cache",
		bound: 0.1,
		unit:  "s",
		run:   firstAnswer,
	},
	{
		name:  "memory",
		what:  "largest anonymous resident memory (RssAnon) of the daemon with 1,000,000 policies while each is looked up once and 60,000 are refreshed over DNS and HTTPS as fast as possible: 6 % of a day's fetches, 50 minutes at the default fetch_rate",
		bound: 48,
		unit:  "MiB",
		run:   memoryOfAMillion,
	},
	{
		name:  "backlog",
		what:  "growth of the anonymous resident memory, from the second quarter of the time to the last, of a keeper and its store while 1,000,000 policies due at once are fetched at 20 a second, in simulated time and without a network; 6 MiB of it are bbolt's list of written pages; a wrong rate or a growing file is an error",
		bound: 8,
		unit:  "MiB",
		run:   overdueMillion,
	},
	{
		name:  "DNS questions",
		what:  "questions to the resolver for a repeated lookup, map postfix-dane, within recheck and the records' TTL: of a domain with DANE under an enforced policy, of one without a policy, and of one in mode testing; a question for MX or TLSA where no policy is enforced is an error",
		bound: 0,
		run:   dnsQuestions,
	},
	{
		name:  "Exim's lookup",
		what:  "wall-clock time that a lookup adds to a real Exim 4.98: readsocket, question, reply; 2,000 expansions with a lookup and 2,000 without, in turn",
		bound: 5,
		unit:  "ms",
		run:   eximLookup,
	},
	{
		name:  "session datagram",
		what:  "CPU time of the collector and its store for a session of Postfix: 100,000 datagrams from 8 processes, each 200 µs apart, to a socket with net.unix.max_dgram_qlen = 512; a ratio to a bare loop that receives and unmarshals; a lost datagram is an error",
		bound: 1.70,
		run:   collectedSessions,
	},
	{
		name:  "day of sessions",
		what:  "largest anonymous resident memory of the store over a simulated day of 1,000,000 sessions of 100,000 domains; more than 2 KiB written a session is an error",
		bound: dayMemory,
		unit:  "MiB",
		run:   sessionsOfADay,
	},
	{
		name:  "day of reports",
		what:  "wall-clock time in which 10,000 reports are planned, built, and accepted by an SMTP server on loopback; the domains' records come at once",
		bound: 60,
		unit:  "s",
		run:   reportsOfADay,
	},
}
