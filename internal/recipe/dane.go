package recipe

import (
	"io/fs"
	"net/netip"
	"path"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// dane reports whether this Postfix does DANE: it must be switched on, and
// nothing may make it impossible. Where it is impossible, a reply of dane-only
// would stop the mail, so that the map must be one without DANE.
func (a *advice) dane() bool {
	level := strings.ToLower(a.p.Settings["smtp_tls_security_level"])
	if !daneLevel(level) {
		a.note("this Postfix does no DANE. It goes with smtp_tls_security_level = dane, smtp_dns_support_level = dnssec and a " +
			"validating resolver; then run this again, since another map is the right one.")
		return false
	}
	// The checks of Postfix's own smtp_tls_policy.c, in its order, and what
	// libc does.
	var obstacles []string
	if !a.is("smtp_dns_support_level", "dnssec") {
		obstacles = append(obstacles, "smtp_dns_support_level is not dnssec. Set: smtp_dns_support_level = dnssec")
	}
	if !hasWord(a.p.Settings["smtp_host_lookup"], "dns") {
		obstacles = append(obstacles, "smtp_host_lookup has no dns. Set: smtp_host_lookup = dns")
	}
	if a.is("ignore_mx_lookup_error", "yes") {
		obstacles = append(obstacles, "ignore_mx_lookup_error = yes makes it impossible")
	}
	for _, option := range []string{"res_defnames", "res_dnsrch"} {
		if hasWord(a.p.Settings["smtp_dns_resolver_options"], option) {
			obstacles = append(obstacles, "smtp_dns_resolver_options = "+option+" makes it impossible: take it out")
		}
	}
	if why := a.adBit(); why != "" {
		obstacles = append(obstacles, why)
	}
	for _, o := range obstacles {
		a.warn("smtp_tls_security_level = %s, but there is no DANE: %s. Until then the map above is one without DANE; run this again afterwards.", level, o)
	}
	return len(obstacles) == 0
}

// daneLevel reports whether a security level is one of those with DANE.
func daneLevel(level string) bool {
	return strings.EqualFold(level, "dane") || strings.EqualFold(level, "dane-only")
}

// adBit returns why libc keeps the resolver's AD bit from Postfix, empty if it
// does not. It warns of a resolver whose word comes over a network, and of one
// that Postfix believes and the daemon does not.
func (a *advice) adBit() string {
	file := "/etc/resolv.conf"
	if a.chrooted() {
		inside := path.Join(a.p.Settings["queue_directory"], file)
		if exists(a.root, inside) {
			file = inside // smtp(8) reads this one
		}
	}
	conf := resolvConf(a.root, file)
	// Later ones set RES_TRUSTAD themselves when they ask for DNSSEC, and
	// resolv.conf has no say (seen with 3.7, 3.10 and 3.11).
	if !conf.TrustAD && !a.p.Version.AtLeast(3, 6, 0) {
		return file + " has no \"options trust-ad\": libc hides from Postfix what the resolver validated"
	}
	for _, s := range conf.Servers {
		if !isRemote(s) {
			continue
		}
		a.warn("the name server %s in %s is on another machine, and Postfix believes it: whoever can forge its answers on the way decides "+
			"whether DANE protects a domain. A validating resolver on this machine is the way out.", s, file)
		if !conf.TrustAD {
			a.warn("%s has no \"options trust-ad\": Postfix believes %s all the same, sts-tlsmap does not, and its policies override DANE, "+
				"which RFC 8461, 2 forbids. A validating resolver on this machine is the way out; else \"options trust-ad\", or trust_ad = true in [dns].", file, s)
		}
	}
	return ""
}

// isRemote reports whether a name server is on another machine.
func isRemote(server netip.Addr) bool { return !server.Unmap().IsLoopback() }

// resolvConf reads a resolv.conf. One that cannot be read is as an empty one:
// libc does not complain either.
func resolvConf(root fs.FS, name string) resolver.ResolvConf {
	f, err := root.Open(strings.TrimPrefix(name, "/"))
	if err != nil {
		return resolver.ResolvConf{}
	}
	defer f.Close()
	conf, err := resolver.ReadResolvConf(f)
	if err != nil {
		return resolver.ResolvConf{}
	}
	return conf
}

// hasWord reports whether a list of Postfix's has the word, in any case.
func hasWord(list, word string) bool {
	for _, w := range splitTables(list) {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}
