package recipe

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// caFiles are where systems keep the public certificate authorities in one
// file, the common ones first.
var caFiles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Alpine, Arch
	"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // the same, newer
	"/etc/ssl/ca-bundle.pem",                            // openSUSE
	"/etc/ssl/cert.pem",                                 // the BSDs, Alpine
}

// advice gathers a recipe for one Postfix.
type advice struct {
	Recipe
	p        Postconf
	root     fs.FS
	d        Daemon
	usesDANE bool // and may: what main.cf says of it
}

// Postfix returns the lines of main.cf for that Postfix, and the warnings.
// root is the machine's file system, from "/".
func Postfix(p Postconf, root fs.FS, d Daemon) (Recipe, error) {
	if !p.Version.AtLeast(3, 4, 0) {
		// servername is known since then, and an attribute that is not known
		// makes the whole policy invalid.
		return Recipe{}, fmt.Errorf("this is Postfix %s; a policy with servername=hostname needs 3.4 or later", p.Version)
	}
	a := &advice{p: p, root: root, d: d}
	a.Title = fmt.Sprintf("For main.cf of this Postfix %s, in %s. Nothing has been changed. When the lines are there: postfix reload",
		p.Version, p.Settings["config_directory"])
	endpoint, err := a.endpoint()
	if err != nil {
		return Recipe{}, err
	}
	a.usesDANE = a.dane()
	name, err := a.mapName(a.usesDANE)
	if err != nil {
		return Recipe{}, err
	}
	a.policyMaps(endpoint, name)
	a.securityLevel()
	a.authorities()
	a.tlsRequired()
	a.mxPatterns()
	a.mxLookups()
	a.overrides()
	a.relayhost()
	a.fallbackRelay()
	a.note("to see the answer for a domain: postmap -q DOMAIN socketmap:%s:%s", endpoint, name)
	return a.Recipe, nil
}

func (a *advice) set(name, value, why string) {
	inEffect := a.p.Settings[name] == value
	a.Settings = append(a.Settings, Setting{Name: name, Value: value, Why: why, InEffect: inEffect})
}

// is reports whether a setting has that value, in any case: so Postfix reads
// "yes" and "no", and the names of levels.
func (a *advice) is(name, value string) bool { return strings.EqualFold(a.p.Settings[name], value) }

// chrooted reports whether a service that runs smtp(8) is in a chroot.
func (a *advice) chrooted() bool {
	for _, c := range a.p.Clients {
		if c.Chroot {
			return true
		}
	}
	return false
}

// mapName chooses the map for what this Postfix knows and does.
func (a *advice) mapName(dane bool) (string, error) {
	tlsrpt := a.p.Version.AtLeast(3, 10, 0)
	if name := a.find(dane, tlsrpt); name != "" {
		return name, nil
	}
	if tlsrpt {
		if name := a.find(dane, false); name != "" {
			a.warn("no map of the daemon sends the policy's attributes (tlsrpt = true): Postfix cannot match MX hosts "+
				"by the policy's patterns, and cannot report. Map %s is used.", name)
			return name, nil
		}
	}
	if dane {
		if name, err := a.mapName(false); err == nil {
			a.warn("this Postfix does DANE, but no map of the daemon has dane = true: with map %s an enforced MTA-STS policy "+
				"overrides DANE, which RFC 8461, 2 forbids.", name)
			return name, nil
		}
	}
	return "", errors.New(`the daemon has no map for Postfix: it needs one with format = "postfix", enforce = true and servername = true`)
}

// find returns the first map that enforces, with these properties.
func (a *advice) find(dane, tlsrpt bool) string {
	for _, m := range a.d.Maps {
		if m.Format == mta.FormatPostfix && m.Enforce && m.Servername && !m.Testing && m.DANE == dane && m.TLSRPT == tlsrpt {
			return m.Name
		}
	}
	return ""
}

// policyMaps puts our map where another policy server's table is, or behind
// the tables that the administrator keeps.
func (a *advice) policyMaps(endpoint, name string) {
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
			a.note("%s is replaced: map %s is the one for this version and its settings.", table, name)
		default:
			a.warn("%s is in smtp_tls_policy_maps now, and left out above: the table that answers first counts, "+
				"and another policy server would answer before this one.", table)
		}
	}
	if !placed {
		tables = append(tables, ours)
	}
	a.set("smtp_tls_policy_maps", strings.Join(tables, ", "), "")
	if sites := a.p.Settings["smtp_tls_per_site"]; sites != "" {
		a.warn("smtp_tls_per_site = %s: Postfix takes no notice of it once there are policy maps, and mail for which TLS is a must there may go "+
			"in clear. Put what it has into a table for smtp_tls_policy_maps, before the map above.", sites)
	}
	if len(before) > 0 {
		a.warn("%s is asked first: for a domain that is in it, whatever it says counts, and MTA-STS does not. "+
			"Take out what is not meant to be weaker than the domain's own policy.", strings.Join(before, ", "))
	}
}

// splitTables takes a list of tables apart, as Postfix does: at commas and
// white space, but not within braces.
func splitTables(list string) []string {
	var tables []string
	level, start := 0, -1
	for i := 0; i <= len(list); i++ {
		separator := i == len(list) || level == 0 && strings.IndexByte(", \t\r\n", list[i]) >= 0
		switch {
		case separator && start >= 0:
			tables = append(tables, list[start:i])
			start = -1
		case separator:
		default:
			if start < 0 {
				start = i
			}
			switch list[i] {
			case '{':
				level++
			case '}':
				level = max(level-1, 0)
			}
		}
	}
	return tables
}

// securityLevel asks for TLS where no policy says anything.
func (a *advice) securityLevel() {
	level := strings.ToLower(a.p.Settings["smtp_tls_security_level"])
	switch {
	case level == "" && a.is("smtp_enforce_tls", "yes"):
		// It counts as long as there is no level, and "may" would undo it.
		level = "encrypt"
		if !a.is("smtp_tls_enforce_peername", "no") {
			level = "verify"
		}
		a.set("smtp_tls_security_level", level, "what smtp_enforce_tls = yes, of old, stands for")
	case level == "" || level == "none":
		a.set("smtp_tls_security_level", "may", "encrypt wherever the other side can, also without a policy")
	}
}

// authorities sees to it that certificates can be verified.
func (a *advice) authorities() {
	file := a.p.Settings["smtp_tls_CAfile"]
	if file != "" && exists(a.root, file) {
		return
	}
	if file != "" {
		a.warn("smtp_tls_CAfile = %s is not there: no certificate verifies, and mail to domains with an enforced policy waits.", file)
	} else if a.seesFolder() || a.is("tls_append_default_CA", "yes") {
		return
	}
	for _, known := range caFiles {
		if exists(a.root, known) {
			a.set("smtp_tls_CAfile", known, "without authorities no certificate verifies, and mail to domains with an enforced policy waits")
			return
		}
	}
	a.warn("no file with certificate authorities was found: without smtp_tls_CAfile no certificate verifies, and mail to domains " +
		"with an enforced policy waits. Install the package ca-certificates and run this again.")
}

// seesFolder reports whether smtp(8) can use the folder of smtp_tls_CApath,
// which it looks into when it is in its chroot already (postconf(5)). Debian
// copies it there, but only where systemd starts Postfix.
func (a *advice) seesFolder() bool {
	folder := a.p.Settings["smtp_tls_CApath"]
	if folder == "" || !a.chrooted() {
		return folder != ""
	}
	st, err := fs.Stat(a.root, strings.TrimPrefix(path.Join("/", a.p.Settings["queue_directory"], folder), "/"))
	return err == nil && st.IsDir()
}

// exists reports whether there is a file. The name may go up by "..", which an
// fs.FS does not take.
func exists(root fs.FS, name string) bool {
	st, err := fs.Stat(root, strings.TrimPrefix(path.Clean("/"+name), "/"))
	return err == nil && !st.IsDir()
}

// tlsRequired warns of RFC 8689 as Postfix does it since 3.10.
func (a *advice) tlsRequired() {
	if a.is("tls_required_enable", "yes") {
		a.warn("tls_required_enable = yes: any sender switches the policy lookup off for a message with the header " +
			"\"TLS-Required: no\". To keep the domains' policies in force: tls_required_enable = no")
	}
}

// mxPatterns warns where a certificate of another host than the one connected
// to is good enough.
func (a *advice) mxPatterns() {
	_, known := a.p.Settings["smtp_tls_enforce_sts_mx_patterns"]
	switch {
	case !known:
		a.note("Postfix before 3.10.5 takes a certificate for any host that the policy lists, on whichever host DNS names, " +
			"and \"*.example.net\" also for names two labels deep. Later versions compare as RFC 8461, 4.1 demands.")
	case a.is("smtp_tls_enforce_sts_mx_patterns", "no"):
		a.warn("smtp_tls_enforce_sts_mx_patterns = no: a certificate for any host that the policy lists is good on whichever host " +
			"DNS names. Take the line out, or: smtp_tls_enforce_sts_mx_patterns = yes")
	}
}

// mxLookups warns where the mail does not go to the MX hosts that a policy
// is about.
func (a *advice) mxLookups() {
	if a.is("disable_dns_lookups", "yes") {
		a.warn("disable_dns_lookups = yes: Postfix asks for no MX records, and connects to a host named as the domain, " +
			"which the policy need not list.")
	}
	// For plain maps as well: the A record of the domain is not its MX host.
	if a.is("ignore_mx_lookup_error", "yes") {
		a.warn("ignore_mx_lookup_error = yes: when the MX lookup fails, Postfix connects to the domain's own address, " +
			"and has no DANE. Set: ignore_mx_lookup_error = no")
	}
}

// watched are the settings that a service may not have otherwise in master.cf
// without a word about it.
var watched = map[string]bool{
	"smtp_tls_policy_maps": true, "smtp_tls_security_level": true, "smtp_tls_CAfile": true, "smtp_tls_CApath": true,
	"smtp_tls_enforce_sts_mx_patterns": true, "smtp_dns_support_level": true, "smtp_dns_resolver_options": true,
	"smtp_fallback_relay": true, "smtp_enforce_tls": true,
	"smtp_host_lookup": true, "ignore_mx_lookup_error": true, "disable_dns_lookups": true, "tls_required_enable": true,
}

// overrides warns of options in master.cf that main.cf cannot change.
func (a *advice) overrides() {
	for _, o := range a.p.Overrides {
		if o.Name == "smtp_tls_security_level" && daneLevel(o.Value) && !a.usesDANE {
			a.warn("master.cf sets \"-o %s=%s\" for %s, and the map above is one without DANE: for that service an enforced MTA-STS policy "+
				"overrides DANE, which RFC 8461, 2 forbids. Give it a map with DANE there too, with the option for smtp_tls_policy_maps.", o.Name, o.Value, o.Service)
			continue
		}
		if o.Name == "smtp_fallback_relay" && o.Value == "" {
			continue // as it was in Postfix's own master.cf for the relay service
		}
		if watched[o.Name] {
			a.warn("master.cf sets \"-o %s=%s\" for %s: what is said here about main.cf does not hold for that service.", o.Name, o.Value, o.Service)
		}
	}
}

// fallbackRelay warns of the hosts that get what cannot be delivered: Postfix
// asks for the policy of their names then. To fail a delivery, it is enough to
// forge an MX record or to drop packets.
func (a *advice) fallbackRelay() {
	if hosts := a.p.Settings["smtp_fallback_relay"]; hosts != "" {
		a.warn("smtp_fallback_relay = %s: mail that its own hosts do not get, for policy or because somebody on the way stops it, goes there, "+
			"and not under its domain's policy. Have TLS be a must on the way there, by a line of its own in a table before the map above, "+
			"and the policies be enforced there too; or take the line out.", hosts)
	}
}

// relayhost says whose policy counts when all mail goes one way.
func (a *advice) relayhost() {
	if hosts := a.p.Settings["relayhost"]; hosts != "" {
		a.note("relayhost = %s: Postfix asks for the policy of that name, not for those of the recipients' domains (RFC 8461, 3.4).", hosts)
	}
}
