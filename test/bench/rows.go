package main

// A row is one line of the table.
type row struct {
	name  string
	what  string  // what is measured, and against what
	bound float64 // the value must not be larger
	unit  string  // of value and bound; empty for a ratio
	run   rowFunc
}

// A rowFunc measures a row once. Whatever it starts through b ends with it.
type rowFunc func(b *bench) (result, error)

// A result is what a row came to.
type result struct {
	value     float64 // in the row's unit; of several, such as the pairs' ratios, the median
	low, high float64 // the least and the greatest of those
	count     int     // of pairs, or of what else low and high are of; 0 for a single figure
	counted   string  // what is counted: "pairs"
	from, to  float64 // of pairs, the interval of the median; 0 and 0 for others
	note      string  // what else there is to say, for the terminal
}

// rows is the table, in the order in which it is measured and printed.
var rows = []row{
	{
		name:  "repeated lookup",
		what:  "CPU time of the daemon for a lookup of the same key again and again, map postfix, at 20,000 lookups a second from 16 clients, against a bare netstring echo server with replies of equal length under the same load",
		bound: 1.10,
		run:   repeatedLookup,
	},
	{
		name:  "random lookup",
		what:  "the same with uniformly random keys over 1,000,000 stored policies, each of them asked for once before; the daemon rechecks TXT records meanwhile, at its check_rate",
		bound: 1.5,
		run:   randomLookup,
	},
	{
		name:  "first discovery",
		what:  "CPU time of the daemon for a lookup of a domain of which it knows nothing, 64 at once, the commit included, against bare TXT, AAAA and A queries with miekg/dns and a bare HTTPS GET with net/http for the same domain",
		bound: 1.35,
		run:   firstDiscovery,
	},
	{
		name:  "exec to first answer",
		what:  "time from exec of the daemon to its first answer, with 1,000,000 policies in a file that is in the page cache; wall-clock time",
		bound: 0.3,
		unit:  "s",
		run:   firstAnswer,
	},
	{
		name:  "memory",
		what:  "largest anonymous resident memory (RssAnon) of the daemon with 1,000,000 policies while each of them is asked for and 60,000 of them, no more, are refreshed over DNS and HTTPS as fast as the machine can: 6 % of what a day's refresh fetches, and at the default fetch_rate 50 minutes of it; a whole day's is in the row below, without a network",
		bound: 64,
		unit:  "MiB",
		run:   memoryOfAMillion,
	},
	{
		name:  "backlog",
		what:  "largest anonymous resident memory of a keeper with its store, in simulated time and without a network, while 1,000,000 policies that are due at once after a long stop are worked off at the configured 20 a second: more than a day's refresh; an error if the rate is not kept, or if the file grows with time, or memory by more than 5 % from the second quarter, or the third, to the last, and what bbolt takes to remember its pages, 3 MiB a quarter",
		bound: 64,
		unit:  "MiB",
		run:   overdueMillion,
	},
	{
		name:  "DNS questions",
		what:  "questions to the resolver for a repeated lookup on map postfix-dane, within recheck and the records' TTL: of a domain with DANE under an enforced policy, of one without a policy, and of one whose policy is in mode testing; a question for MX or TLSA where no policy is enforced is an error",
		bound: 0,
		run:   dnsQuestions,
	},
	{
		name:  "Exim's lookup",
		what:  "wall-clock time that a lookup adds to a real Exim 4.98: readsocket, the question, the reply; 2,000 expansions with a lookup against 2,000 without, in turn; how often it asks for one message is counted",
		bound: 5,
		unit:  "ms",
		run:   eximLookup,
	},
}
