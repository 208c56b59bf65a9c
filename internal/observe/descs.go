package observe

import "github.com/prometheus/client_golang/prometheus"

// Prefix is how the name of every metric of ours begins.
const Prefix = "sts_tlsmap_"

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(Prefix+name, help, labels, nil)
}

// The metrics made at each scrape from what the others count. Labels take
// their values from the configuration (map) and from the program; none comes
// from the network.
var (
	buildInfo = desc("build_info", "Always 1; the labels say what runs.", "version", "commit", "goversion")
	startTime = desc("start_time_seconds", "When the daemon started, in Unix time.")
	trouble   = desc("trouble", "1 while a condition holds in which an operator has to act; -check says what to do.", "condition")

	lookups        = desc("lookups_total", "Lookups by map and result; rehearsed ones were answered notfound.", "map", "result")
	lookupDuration = desc("lookup_duration_seconds",
		"Time to the reply. Lookups answered from memory are not timed, and counted in the smallest bucket with no time.", "map")
	unknownMaps    = desc("unknown_map_lookups_total", "Lookups in maps that do not exist, which were answered PERM.")
	negativeHits   = desc("negative_hits_total", "Lookups answered from the memory of domains without a policy.")
	lookupTimeouts = desc("lookup_timeouts_total", "Lookups answered before their discovery had ended.")
	overloads      = desc("discovery_overloads_total", "Discoveries that got no turn in time.")

	policies     = desc("policies", "Policies in the cache by mode, expired ones of the last week included.", "mode")
	usedBytes    = desc("cache_used_bytes", "Bytes of the cache that are in use.")
	fileBytes    = desc("cache_file_bytes", "Bytes of the cache file, which does not shrink.")
	maxBytes     = desc("cache_max_bytes", "Bytes that may be in use: max_size in [cache].")
	newest       = desc("cache_newest_timestamp_seconds", "The latest time in any record of the cache, 0 if there is none.")
	damaged      = desc("cache_damaged_values_total", "Stored policies met that could not be read.")
	unreadable   = desc("cache_unreadable_pages_total", "Pages of the cache file met that could not be read.")
	rebuilds     = desc("cache_rebuilds_total", "Times the cache file was rebuilt while in use.")
	salvagedLost = desc("cache_lost_policies", "Policies that the last salvage or rebuild of the cache since the start could not save; NaN: it is not known, since the file could not be opened.")
	storeErrors  = desc("cache_errors_total", "Readings of the cache that failed.")
	sampled      = desc("policy_sample", "Policies that the ages are told from: a sample, newly drawn each minute.")
	age          = desc("policy_age_seconds", "Time since a policy of the sample was fetched.", "rank")
	lifeLeft     = desc("policy_life_left_seconds", "Time until a policy of the sample expires; negative when it has.", "rank")

	tableEntries = desc("memory_policies", "Policies held in memory.")
	tableBytes   = desc("memory_bytes", "Bytes of the policies held in memory.")
	negatives    = desc("memory_negatives", "Domains remembered to have no policy, or to fail.")
	discovering  = desc("discoveries_in_progress", "Discoveries and refreshes that domains wait for now.")
	queue        = desc("queue_length", "What waits in the daemon's queues.", "queue")
	lateWrites   = desc("late_writes", "Changes answered from memory, since the disk is slow or full.")
	failedWrites = desc("failed_commits_total", "Commits to the cache that failed.")
	notKept      = desc("policies_not_kept_total", "Policies answered and not stored, by reason.", "reason")
	rechecks     = desc("rechecks_total", "TXT lookups that lookups of held policies asked for.")
	dropped      = desc("dropped_total", "What was dropped since its queue or its rate was at the limit.", "what")
	panics       = desc("panics_total", "Panics survived; each is a bug, and in the log.", "in")
	lateness     = desc("refresh_lateness_seconds", "By how much the refresher is behind.")

	daneFindings = desc("dane_findings_total", "What checks of next-hops found, by state.", "state")
	daneHeld     = desc("dane_next_hops", "Next-hops whose DANE state is held.")
	daneKept     = desc("dane_kept_next_hops", "Next-hops that keep the DANE they had, although nothing vouches for it now.")
	mxHeld       = desc("mx_domains", "Domains whose MX hosts are held, for Exim.")
	daneChecking = desc("dane_checks_in_progress", "Next-hops being checked.")
	verdict      = desc("resolver_verdict", "1 for what the last probe of the resolver says of its validation.", "verdict")

	connections = desc("connections", "Connections open from MTAs.")
	accepted    = desc("connections_total", "Connections accepted from MTAs.")
	closed      = desc("connections_closed_total", "Connections closed by the daemon before their client did, by reason.", "reason")
	requests    = desc("requests_total", "Requests received on the socketmap.")
)

// descs are all of them.
var descs = []*prometheus.Desc{
	buildInfo, startTime, trouble,
	lookups, lookupDuration, unknownMaps, negativeHits, lookupTimeouts, overloads,
	policies, usedBytes, fileBytes, maxBytes, newest, damaged, unreadable, rebuilds, salvagedLost, storeErrors,
	sampled, age, lifeLeft,
	tableEntries, tableBytes, negatives, discovering, queue, lateWrites, failedWrites, notKept,
	rechecks, dropped, panics, lateness,
	daneFindings, daneHeld, daneKept, mxHeld, daneChecking, verdict,
	connections, accepted, closed, requests,
}
