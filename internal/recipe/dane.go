package recipe

import (
	"io"
	"net/netip"
	"path"
	"strings"
)

// resolvConfSize bounds what is read of a resolv.conf, in bytes.
const resolvConfSize = 64 << 10

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
		if a.exists(inside) {
			file = inside // smtp(8) reads this one
		}
	}
	servers, trustAD := parseResolvConf(a.readFile(file))
	// Later ones set RES_TRUSTAD themselves when they ask for DNSSEC, and
	// resolv.conf has no say (seen with 3.7, 3.10 and 3.11).
	if !trustAD && !a.p.Version.AtLeast(3, 6, 0) {
		return file + " has no \"options trust-ad\": libc hides from Postfix what the resolver validated"
	}
	for _, s := range servers {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.IsLoopback() {
			continue
		}
		a.warn("the name server %s in %s is on another machine, and Postfix believes it: whoever can forge its answers on the way decides "+
			"whether DANE protects a domain. A validating resolver on this machine is the way out.", s, file)
		if !trustAD {
			a.warn("%s has no \"options trust-ad\": Postfix believes %s all the same, sts-tlsmap does not, and its policies override DANE, "+
				"which RFC 8461, 2 forbids. A validating resolver on this machine is the way out; else \"options trust-ad\", or trust_ad = true in [dns].", file, s)
		}
	}
	return ""
}

// isRemote reports whether a name server is on another machine.
func isRemote(server string) bool {
	addr, err := netip.ParseAddr(server)
	return err == nil && !addr.IsLoopback()
}

// readFile returns the start of a file, empty if it cannot be read: libc does
// not complain either.
func (a *advice) readFile(name string) string {
	f, err := a.root.Open(strings.TrimPrefix(name, "/"))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, resolvConfSize))
	if err != nil {
		return ""
	}
	return string(b)
}

// parseResolvConf returns the name servers, and whether the AD bit is passed
// on (resolv.conf(5)).
func parseResolvConf(text string) (servers []string, trustAD bool) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			servers = append(servers, f[1])
		case "options":
			for _, option := range f[1:] {
				if option == "trust-ad" {
					trustAD = true
				}
			}
		}
	}
	return servers, trustAD
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
