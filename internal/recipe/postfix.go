package recipe

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// postfixRisks are settings that weaken the protection. bad is the value that
// does so; "*" is any but the empty one.
var postfixRisks = []struct{ name, bad, consequence string }{
	{"tls_required_enable", "yes", `a sender switches off the policy lookup by adding the header "TLS-Required: no" to a message. ` +
		"Set: tls_required_enable = no"},
	{"smtp_tls_enforce_sts_mx_patterns", "no", "Postfix accepts a certificate for any host that the policy lists on whichever host DNS names. " +
		"Set: smtp_tls_enforce_sts_mx_patterns = yes"},
	{"disable_dns_lookups", "yes", "Postfix looks up no MX records, and connects to a host with the name of the domain, which the policy " +
		"need not list. Set: disable_dns_lookups = no"},
	{"ignore_mx_lookup_error", "yes", "when the MX lookup fails, Postfix connects to the domain's own address, without DANE. " +
		"Set: ignore_mx_lookup_error = no"},
	{"smtp_tls_per_site", "*", "Postfix ignores this table once there are policy maps, and mail for which it requires TLS may be sent in clear. " +
		"Move its entries to a table in smtp_tls_policy_maps, before the map of sts-tlsmap."},
	{"smtp_fallback_relay", "*", "mail that a domain's own hosts do not accept goes there without the domain's policy, also when an attacker " +
		"blocks those hosts. Require TLS to the fallback relay by an entry in a table before the map of sts-tlsmap, and let the relay enforce " +
		"policies too; or remove the setting."},
}

// watched are settings that the recipe goes by, and that master.cf may override.
var watched = []string{
	"smtp_tls_policy_maps", "smtp_tls_security_level", "smtp_tls_CAfile", "smtp_tls_CApath", "smtp_dns_support_level",
	"smtp_dns_resolver_options", "smtp_enforce_tls", "smtp_host_lookup", "tls_required_enable", "smtp_tls_enforce_sts_mx_patterns",
	"disable_dns_lookups", "ignore_mx_lookup_error", "smtp_fallback_relay",
}

// postfixAdvice gathers a recipe for one Postfix.
type postfixAdvice struct {
	Recipe
	p    Postconf
	root fs.FS
	d    Daemon
}

// Postfix returns the lines of main.cf for that Postfix, and the warnings.
// root is the machine's file system, from "/".
func Postfix(p Postconf, root fs.FS, d Daemon) (Recipe, error) {
	if !p.Version.AtLeast(3, 4, 0) {
		// An unknown attribute makes the whole policy invalid.
		return Recipe{}, fmt.Errorf("this is Postfix %s, which does not know the attribute servername=hostname of a TLS policy, and would defer "+
			"all mail to domains with an enforced policy; Postfix 3.4 or later is needed", p.Version)
	}
	a := &postfixAdvice{p: p, root: root, d: d}
	a.Title = fmt.Sprintf("For main.cf of this Postfix %s, in %s. Nothing has been changed. After you have added the lines: postfix reload",
		p.Version, p.Settings["config_directory"])
	at, err := a.endpoint()
	if err != nil {
		return Recipe{}, err
	}
	dane := a.dane()
	name, err := a.mapName(dane)
	if err != nil {
		return Recipe{}, err
	}
	a.policyMaps(at, name)
	a.securityLevel()
	if level := p.Settings["smtp_tls_loglevel"]; level == "" || level == "0" {
		a.set("smtp_tls_loglevel", "1", "the log says of each connection whether the certificate was verified, and why not")
	}
	a.authorities()
	a.reports()
	a.reportMail()
	a.risks()
	a.overrides(dane)
	if _, known := p.Settings["smtp_tls_enforce_sts_mx_patterns"]; !known {
		a.note("Postfix before 3.10.5 accepts a certificate for any host that the policy lists on whichever host DNS names, and takes " +
			"\"*.example.net\" for names two labels deep too. Later versions compare as RFC 8461, 4.1 requires.")
	}
	if hosts := p.Settings["relayhost"]; hosts != "" {
		a.note("relayhost = %s: Postfix asks for the policy of that name, not for those of the recipients' domains (RFC 8461, 3.4).", hosts)
	}
	a.note("to see the answer for a domain: postmap -q DOMAIN socketmap:%s:%s", at, name)
	return a.Recipe, nil
}

// risks warns of settings that weaken the protection.
func (a *postfixAdvice) risks() {
	for _, r := range postfixRisks {
		value := a.p.Settings[r.name]
		a.warnIf(strings.EqualFold(value, r.bad) || r.bad == "*" && value != "", "%s = %s: %s", r.name, value, r.consequence)
	}
}

func (a *postfixAdvice) set(name, value, why string) {
	if a.p.Settings[name] == value {
		why = strings.TrimSpace(why + " (already set)")
	}
	a.Parts = append(a.Parts, Part{Why: why, Text: oneLine(name+" = "+value) + "\n"})
}

// is reports whether a setting has that value, in any case: so Postfix reads
// "yes", "no" and the names of levels.
func (a *postfixAdvice) is(name, value string) bool {
	return strings.EqualFold(a.p.Settings[name], value)
}

// endpoint chooses how Postfix reaches the daemon: over loopback where possible,
// which works from a chroot and for postmap(1) in any folder.
func (a *postfixAdvice) endpoint() (string, error) {
	loopback, unix, remote := a.d.reach()
	queue := strings.TrimSuffix(a.p.Settings["queue_directory"], "/") + "/"
	var inside, outside string
	for _, path := range unix {
		if below, ok := strings.CutPrefix(path, queue); ok && queue != "/" {
			inside = cmp.Or(inside, "unix:"+below)
		} else {
			outside = cmp.Or(outside, "unix:"+path)
		}
	}
	switch {
	case loopback != "":
		return loopback, nil
	case inside != "":
		a.note("%s is a path below queue_directory: run postmap -q in that directory.", inside)
		return inside, nil
	case outside != "" && !a.p.Chroot:
		return outside, nil
	case remote != "":
		a.warnIf(true, crossesNetwork, remote)
		return remote, nil
	case outside != "":
		a.warnIf(true, "%s is out of reach for smtp(8), which master.cf runs in a chroot: mail would wait. Have the daemon listen on "+
			"inet:127.0.0.1:8461, or on a socket below %s", outside, queue)
		return outside, nil
	}
	return "", errors.New("the daemon has no endpoint that Postfix can ask: set listen")
}

// mapName chooses the map for what this Postfix knows and does.
func (a *postfixAdvice) mapName(dane bool) (string, error) {
	tlsrpt := a.p.Version.AtLeast(3, 10, 0)
	for _, want := range []struct{ dane, tlsrpt bool }{{dane, tlsrpt}, {dane, false}, {false, tlsrpt}, {false, false}} {
		for _, m := range a.d.Maps {
			if m.Format != mta.FormatPostfix || !m.Enforce || !m.Servername || m.Testing || m.DANE != want.dane || m.TLSRPT != want.tlsrpt {
				continue
			}
			a.warnIf(tlsrpt && !m.TLSRPT, "no map of the daemon sends the policy's attributes (tlsrpt = true): Postfix cannot compare MX hosts "+
				"with the policy's patterns, and cannot report. Map %s is used.", m.Name)
			a.warnIf(dane && !m.DANE, "this Postfix does DANE, but no map of the daemon has dane = true: with map %s an enforced MTA-STS policy "+
				"overrides DANE, which RFC 8461, 2 forbids.", m.Name)
			return m.Name, nil
		}
	}
	return "", errors.New(`the daemon has no map for Postfix: it needs one with format = "postfix", enforce = true and servername = true`)
}

// policyMaps puts our map in the place of another policy server's table, or
// behind the tables that the administrator keeps.
func (a *postfixAdvice) policyMaps(endpoint, name string) {
	ours := "socketmap:" + endpoint + ":" + name
	var tables, before []string
	placed := false
	for _, table := range splitTables(a.p.Settings["smtp_tls_policy_maps"]) {
		kind, _, _ := strings.Cut(strings.TrimPrefix(table, "proxy:"), ":")
		if kind != "socketmap" && kind != "tcp" {
			tables = append(tables, table)
			if !placed {
				before = append(before, table)
			}
			continue
		}
		if !placed {
			tables, placed = append(tables, ours), true
		}
		switch {
		case table == ours:
		case strings.HasPrefix(table, "socketmap:"+endpoint+":"):
			a.note("%s is replaced: map %s fits this version and its settings.", table, name)
		default:
			a.warnIf(true, "%s is in smtp_tls_policy_maps now, and removed below: the first table that answers counts, "+
				"and another policy server would answer before this one.", table)
		}
	}
	if !placed {
		tables = append(tables, ours)
	}
	a.set("smtp_tls_policy_maps", strings.Join(tables, ", "), "")
	a.warnIf(len(before) > 0, "%s is asked first: its entries count instead of the domains' own policies. "+
		"Remove entries that are weaker than the domain's policy.", strings.Join(before, ", "))
}

// splitTables splits a list as Postfix does: at commas and white space, but not
// within braces.
func splitTables(list string) []string {
	level := 0
	return strings.FieldsFunc(list, func(r rune) bool {
		switch r {
		case '{':
			level++
		case '}':
			level = max(level-1, 0)
		}
		return level == 0 && strings.ContainsRune(", \t\r\n", r)
	})
}

// securityLevel asks for TLS where no policy says anything.
func (a *postfixAdvice) securityLevel() {
	level := strings.ToLower(a.p.Settings["smtp_tls_security_level"])
	switch {
	case level == "" && a.is("smtp_enforce_tls", "yes"):
		// It counts as long as there is no level, and "may" would undo it.
		level = "encrypt"
		if !a.is("smtp_tls_enforce_peername", "no") {
			level = "verify"
		}
		a.set("smtp_tls_security_level", level, "the same as the old setting smtp_enforce_tls = yes")
	case level == "" || level == "none":
		a.set("smtp_tls_security_level", "may", "encrypt wherever the other side can, also without a policy")
	}
}

// reports has Postfix tell the daemon of its TLS sessions, if the daemon takes them.
func (a *postfixAdvice) reports() {
	path := a.d.Sessions
	switch {
	case path == "":
		return
	case !a.p.Version.AtLeast(3, 10, 0):
		a.note("[tlsrpt] in the configuration of sts-tlsmap has no effect with this Postfix: TLS reports need Postfix 3.10 or later.")
		return
	}
	below, isBelow := strings.CutPrefix(path, strings.TrimSuffix(a.p.Settings["queue_directory"], "/")+"/")
	a.warnIf(!isBelow, "%s is not below queue_directory, where Postfix looks for it: no TLS session is reported. Set postfix_socket in [tlsrpt].", path)
	a.set("smtp_tlsrpt_enable", "yes", "TLS reports (RFC 8460)")
	a.set("smtp_tlsrpt_socket_name", below, "")
	if a.p.Version.AtLeast(3, 11, 0) {
		a.set("smtp_tlsrpt_skip_reused_handshakes", "no", "count resumed TLS sessions too")
	}
}

// reportMail has Postfix deliver TLS reports although the receiver's TLS is broken (RFC 8460,
// 3). With tls_required_enable = no it would not.
func (a *postfixAdvice) reportMail() {
	if a.d.ReportSender == "" || a.p.Settings["relayhost"] != "" {
		return
	}
	a.Parts = append(a.Parts, Part{
		Why: "TLS reports go out although the receiver's TLS is broken, by a service of their own. Make it in master.cf first:",
		Text: "# postconf -M 'sts-tlsmap-reports/unix=sts-tlsmap-reports unix - - - - - smtp -o smtp_tls_policy_maps= " +
			"-o smtp_tls_security_level=may -o smtp_tlsrpt_enable=no'\n",
	})
	const name = "sender_dependent_default_transport_maps"
	ours := "inline:{{" + a.d.ReportSender + " = sts-tlsmap-reports:}}"
	others := slices.DeleteFunc(splitTables(a.p.Settings[name]), func(table string) bool { return table == ours })
	a.set(name, strings.Join(append([]string{ours}, others...), ", "), "")
}

// authorities makes sure that certificates can be verified.
func (a *postfixAdvice) authorities() {
	file, folder := a.p.Settings["smtp_tls_CAfile"], a.p.Settings["smtp_tls_CApath"]
	if a.p.Chroot {
		// smtp(8) looks into the folder from its chroot (postconf(5)). Debian copies
		// the folder there, but only where systemd starts Postfix.
		st, err := fs.Stat(a.root, rooted(path.Join(a.p.Settings["queue_directory"], folder)))
		if !errors.Is(err, fs.ErrPermission) && (err != nil || !st.IsDir()) {
			folder = ""
		}
	}
	switch known := findCAFile(a.root); {
	case file != "" && exists(a.root, file):
		return
	case file == "" && (folder != "" || a.is("tls_append_default_CA", "yes")):
		return
	case known != "":
		a.set("smtp_tls_CAfile", known, "without authorities "+noVerification)
	default:
		a.warnIf(true, noAuthorities)
	}
	a.warnIf(file != "", "smtp_tls_CAfile = %s is not there: %s.", file, noVerification)
}

// overrides warns of options in master.cf, which main.cf cannot change.
func (a *postfixAdvice) overrides(dane bool) {
	for _, o := range a.p.Overrides {
		switch {
		case o.Name == "smtp_tls_security_level" && daneLevel(o.Value) && !dane:
			a.warnIf(true, "master.cf sets \"-o %s=%s\" for %s, but the map below has no DANE: for that service an enforced MTA-STS policy "+
				"overrides DANE, which RFC 8461, 2 forbids. Set smtp_tls_policy_maps for the service too, to a map with DANE.", o.Name, o.Value, o.Service)
		case o.Name == "smtp_fallback_relay" && o.Value == "": // in Postfix's own master.cf
		default:
			a.warnIf(slices.Contains(watched, o.Name), "master.cf sets \"-o %s=%s\" for %s: this recipe does not "+
				"apply to that service.", o.Name, o.Value, o.Service)
		}
	}
}

// daneLevel reports whether a security level is one of those with DANE.
func daneLevel(level string) bool {
	return strings.EqualFold(level, "dane") || strings.EqualFold(level, "dane-only")
}

// dane reports whether this Postfix does DANE: a setting asks for DANE, and no
// other makes it impossible. Where it is impossible, a reply of dane-only would
// stop the mail, and the map must be one without DANE.
func (a *postfixAdvice) dane() bool {
	level := strings.ToLower(a.p.Settings["smtp_tls_security_level"])
	if !daneLevel(level) {
		a.note("this Postfix does no DANE. To enable it, set smtp_tls_security_level = dane and smtp_dns_support_level = dnssec with a " +
			"validating resolver, and run this again: another map is needed then.")
		return false
	}
	hasWord := func(setting, word string) bool {
		return slices.ContainsFunc(splitTables(a.p.Settings[setting]), func(w string) bool { return strings.EqualFold(w, word) })
	}
	file := "/etc/resolv.conf"
	if inside := path.Join(a.p.Settings["queue_directory"], file); a.p.Chroot && exists(a.root, inside) {
		file = inside
	}
	conf := resolvConf(a.root, file)
	// The checks of Postfix's own smtp_tls_policy.c, in its order, and libc's.
	// Since 3.6 Postfix sets RES_TRUSTAD itself when it asks for DNSSEC, whatever
	// resolv.conf says (seen with 3.7, 3.10 and 3.11).
	possible := true
	for _, o := range []struct {
		is     bool
		remedy string
	}{
		{!a.is("smtp_dns_support_level", "dnssec"), "Set: smtp_dns_support_level = dnssec"},
		{!hasWord("smtp_host_lookup", "dns"), "Set: smtp_host_lookup = dns"},
		{a.is("ignore_mx_lookup_error", "yes"), "Set: ignore_mx_lookup_error = no"},
		{hasWord("smtp_dns_resolver_options", "res_defnames"), "Remove res_defnames from smtp_dns_resolver_options"},
		{hasWord("smtp_dns_resolver_options", "res_dnsrch"), "Remove res_dnsrch from smtp_dns_resolver_options"},
		{!conf.TrustAD && !a.p.Version.AtLeast(3, 6, 0), file + " has no \"options trust-ad\", and libc hides from Postfix what the resolver validated. Add it"},
	} {
		possible = possible && !o.is
		a.warnIf(o.is, "smtp_tls_security_level = %s, but DANE is impossible. %s, and run this again: until then the map below has no DANE.", level, o.remedy)
	}
	for _, s := range remoteServers(conf) {
		a.warnIf(true, remoteResolver, s, file, "Postfix")
		a.warnIf(!conf.TrustAD, "%s has no \"options trust-ad\": Postfix trusts %s all the same, but sts-tlsmap does not, and its policies override "+
			"DANE, which RFC 8461, 2 forbids. Run a validating resolver on this machine; or add \"options trust-ad\", or set trust_ad = true in [dns].", file, s)
	}
	return possible
}
