package recipe

import (
	"regexp"
	"slices"
	"strings"
	"time"
)

// lists warns where the named lists are missing that the macros ask for.
func (a *eximAdvice) lists() {
	for _, name := range []string{"local_domains", "relay_to_domains"} {
		if a.c.Text != "" && !regexp.MustCompile(`(?m)^\s*domainlist\s+`+name+`\s*=`).MatchString(a.c.Text) {
			a.warn("this configuration has no domainlist %s: mail would wait. Write what it stands for into STS_TLSMAP_DOMAINS: "+
				"the domains that are not to be asked for, each with a \"!\" before it.", name)
		}
	}
}

// hubbedHosts is the file of a router that Debian has before ours.
const hubbedHosts = "/etc/exim4/hubbed_hosts"

// unused reports whether a router is Debian's for a file that is not there.
func (a *eximAdvice) unused(r Instance) bool {
	return r.Name == "hubbed_hosts" && !exists(a.root, hubbedHosts)
}

// earlierRouters warns of routers that take domains before ours do.
func (a *eximAdvice) earlierRouters() {
	ours := slices.IndexFunc(a.c.Routers, func(r Instance) bool { return r.Name == askRouter })
	last := a.remoteRouter()
	for i, r := range a.c.Routers {
		if ours >= 0 && i >= ours || last != nil && ours < 0 && r.Name == last.Name {
			break
		}
		if a.unused(r) || r.Name == a.smart.router {
			continue
		}
		if driver := r.Options["driver"]; driver == "ipliteral" || !a.sends(r) || r.Name == "dnslookup_relay_to_domains" {
			continue // an address literal has no policy, and a domain that we are an MX of is left to us
		}
		a.warn("router %s comes first and sends mail to other hosts: for what it takes (domains = %s) no policy is asked for. "+
			"That is right for hosts of your own only.", r.Name, first(r.Options["domains"], "all"))
	}
	if last == nil && !a.isLocal() {
		a.warn("no router that sends mail to other hosts was found: put ours where such mail passes.")
	}
}

// installed looks at our routers, transport and retry rule where they are there
// already.
func (a *eximAdvice) installed() {
	t := find(a.c.Transports, ourTransport)
	if t == nil {
		return
	}
	for _, want := range [][2]string{
		{"hosts_require_tls", "*"}, {"tls_verify_hosts", "*"}, {"tls_verify_cert_hostnames", "*"}, {"tls_sni", "$host"},
		{"hosts_try_dane", "*"}, {"hosts_avoid_tls", ""}, {"hosts_verify_avoid_tls", ""}, {"hosts_override", "false"}, {"hosts", ""},
		{"fallback_hosts", ""}, {"multi_domain", "false"}, {"hosts_nopass_tls", "*"},
	} {
		if got, ok := t.Options[want[0]]; ok && got != want[1] {
			a.warn("transport %s has %s = %s, not %q: see docs/exim.md for what that undoes.", ourTransport, want[0], got, want[1])
		}
	}
	if own := a.remoteTransport(); own != nil && sameRetryKeys(*t, *own) {
		a.warn("transport %s has interface and retry_include_ip_address as transport %s has them: what fails for one enforced domain at a host "+
			"stops all mail to it. Use the STS_TLSMAP_INTERFACE and the options below.", ourTransport, own.Name)
	}
	if v := t.Options["tls_verify_certificates"]; v != "system" && !strings.HasPrefix(v, "/") {
		a.warn("transport %s has tls_verify_certificates = %s: no certificate is verified by that.", ourTransport, v)
	}
	a.tlsRule()
	if r := find(a.c.Routers, hostsRouter); r != nil {
		for _, o := range []string{"fallback_hosts", "pass_on_timeout"} {
			if v := r.Options[o]; v != "" && v != "false" {
				a.warn("router %s has %s = %s: mail leaves its protection by that.", hostsRouter, o, v)
			}
		}
	}
	if r := find(a.c.Routers, askRouter); r != nil {
		m := regexp.MustCompile(`\{([0-9wdhms]+):cache=yes\}`).FindStringSubmatch(r.Options["address_data"])
		if m == nil {
			return
		}
		if wait := parseEximTime(m[1]); wait <= a.d.LookupTimeout {
			a.warn("Exim waits for %s, and the daemon for up to %s ([lookup] timeout): a domain that is slow to discover makes mail wait "+
				"that would go. Use the STS_TLSMAP_TIMEOUT below.", wait, a.d.LookupTimeout)
		}
	}
}

// cutthrough warns of the control that sends a message on while it comes in:
// its recipients share a connection if their hosts have one address.
func (a *eximAdvice) cutthrough() {
	if regexp.MustCompile(`(?m)^[^#]*\bcutthrough_delivery\b`).MatchString(a.c.Text) {
		a.warn("control = cutthrough_delivery adds recipients to a connection by the host's address alone: a domain whose policy lists another " +
			"name there, under which the host was not verified, gets its mail over it. Use it for +relay_to_domains only.")
	}
}

// cutoff is the end of a retry rule's part: "F,4d,6h".
var cutoff = regexp.MustCompile(`[FGH],\s*([0-9wdhms]+)\s*,`)

// retryRule warns of a rule that gives up before a domain can mend itself.
func (a *eximAdvice) retryRule() {
	if a.c.RetryRule == "" {
		a.warn("no retry rule covers all domains: deferred mail bounces at once. Write, after \"begin retry\": * * F,2h,15m; G,16h,1h,1.5; F,4d,6h")
		return
	}
	var longest time.Duration
	for _, m := range cutoff.FindAllStringSubmatch(a.c.RetryRule, -1) {
		longest = max(longest, parseEximTime(m[1]))
	}
	if longest < shortestRetry {
		a.warn("the retry rule (%s) gives up after %s: mail comes back before a domain has mended its policy or its hosts. Four days are usual.", a.c.RetryRule, longest)
	}
}

// interval is what a part of a retry rule has mail wait for: "F,4d,6h".
var interval = regexp.MustCompile(`[FGH],\s*[0-9wdhms]+\s*,\s*([0-9wdhms]+)`)

// longestTLSRetry is how long Exim may remember that a host's TLS failed. It is
// less than there is between two queue runs.
const longestTLSRetry = time.Minute

// tlsRule warns where a domain that lists an alias can put off others.
func (a *eximAdvice) tlsRule() {
	if !a.manyDomains() || a.c.TLSRule == "" { // of no rule at all, retryRule warns
		return
	}
	for _, m := range interval.FindAllStringSubmatch(a.c.TLSRule, -1) {
		if parseEximTime(m[1]) > longestTLSRetry {
			a.warn("the retry rule for hosts whose TLS failed is %q: a domain that lists an alias of another one's host, and fails there, has "+
				"all enforced mail to that host put off. Put the retry rule below before all others.", a.c.TLSRule)
			return
		}
	}
}

// queueOrder tells of what brings mail to an alias and to its target to the same
// moment again and again, where the rule has the host be put off.
func (a *eximAdvice) queueOrder() {
	if a.manyDomains() && regexp.MustCompile(`(?m)^\s*queue_run_in_order(\s*=\s*(true|yes))?\s*$`).MatchString(a.c.Text) {
		a.note("queue_run_in_order has the same message tried after the same one in each queue run: where that is for an alias of its host, and fails, " +
			"it is put off each time. In random order, which Exim has by default, its turn comes.")
	}
}

// parseEximTime reads a time interval of Exim's: "4d", "1h30m".
func parseEximTime(s string) (d time.Duration) {
	units := map[byte]time.Duration{'w': 7 * 24 * time.Hour, 'd': 24 * time.Hour, 'h': time.Hour, 'm': time.Minute, 's': time.Second}
	n := time.Duration(0)
	for i := 0; i < len(s); i++ {
		if c := s[i]; '0' <= c && c <= '9' {
			n = min(n*10+time.Duration(c-'0'), 1e6)
		} else {
			d, n = d+n*units[c], 0
		}
	}
	return d + n*time.Second
}

// authorities sees to it that certificates can be verified.
func (a *eximAdvice) authorities() {
	for _, known := range caFiles {
		if exists(a.root, known) {
			return
		}
	}
	a.warn("no file with certificate authorities was found: no certificate verifies, and mail to domains with an enforced policy waits. " +
		"Install the package ca-certificates.")
}

// dane warns of what keeps Exim from its own DANE.
func (a *eximAdvice) dane() {
	if !slices.Contains(a.c.Support, "DANE") {
		a.warn("this Exim was built without DANE: an enforced MTA-STS policy then overrides a failing DANE validation, which RFC 8461, 2 forbids.")
		return
	}
	if regexp.MustCompile(`(?m)^\s*dns_dnssec_ok\s*=\s*0`).MatchString(a.c.Text) {
		a.warn("dns_dnssec_ok = 0: Exim asks for no DNSSEC, and there is no DANE. Set: dns_dnssec_ok = 1")
	}
	conf := resolvConf(a.root, "/etc/resolv.conf")
	if !conf.TrustAD {
		a.warn("/etc/resolv.conf has no \"options trust-ad\": libc hides from Exim what the resolver validated, and there is no DANE. " +
			"Where a validating resolver runs on this machine, add it.")
		return
	}
	for _, s := range conf.Servers {
		if isRemote(s) {
			a.warn("the name server %s in /etc/resolv.conf is on another machine, and trust-ad believes it: whoever can forge its answers "+
				"on the way decides whether DANE protects a domain.", s)
		}
	}
}
