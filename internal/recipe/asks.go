package recipe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

const (
	policyMaps  = "smtp_tls_policy_maps"
	connectTime = time.Second // to another socketmap server
)

// An AskingState is how much of an MTA's mail an Asking concerns.
type AskingState int

// The states.
const (
	Asks   AskingState = iota // the daemon, for a map that it has; or the MTA sends no mail
	Silent                    // asks nobody, or another server
	Odd                       // perhaps not meant, or it could not be read
	Fails                     // mail waits, or is less protected than configured
)

// An Asking is a finding on whether an MTA of this machine asks the daemon.
type Asking struct {
	MTA   string // "Postfix 3.10.5", "Exim"
	State AskingState
	DANE  bool   // it asks for a map with DANE
	What  string // what was found
	Next  string // what to do unless all is well
}

// Askings returns whether the MTAs on this machine ask the daemon; none if there is
// no MTA. Where d.Listen is empty, nobody knows where the daemon listens, and any
// place counts. root is the machine's file system, from "/".
func Askings(ctx context.Context, root fs.FS, d Daemon) (all []Asking) {
	if path, err := FindPostconf(); err == nil {
		if p, err := ReadPostconf(ctx, path); err != nil {
			all = append(all, Asking{"Postfix", Silent, false, err.Error(), "see what it says: " + path + " -x"})
		} else {
			all = p.Askings(ctx, root, d)
		}
	}
	if path, err := FindExim(); err == nil {
		out, err := ask(ctx, path, [][]string{{"-bP", "routers"}})
		a := Asking{"Exim", Silent, false, fmt.Sprint(err), "see what it says: " + path + " -bP routers"}
		switch {
		case err == nil:
			a = eximAsking(instances(out[0]), d)
		case os.Geteuid() != 0: // Exim may show its configuration to root only
			a.State, a.What, a.Next = Odd, "could not be checked: "+a.What, "run this as root"
		}
		all = append(all, a)
	}
	return all
}

// Askings reports whether the smtp services of this Postfix ask the daemon, each with
// its own options in master.cf. A service whose findings are those of the default
// transport is left out.
func (p Postconf) Askings(ctx context.Context, root fs.FS, d Daemon) (all []Asking) {
	service := func(setting, usual string) string {
		name, _, _ := strings.Cut(cmp.Or(p.Settings[setting], usual), ":")
		return name + "/unix"
	}
	first, relay := service("default_transport", "smtp"), service("relay_transport", "relay")
	var seen []Asking
	for i, name := range append([]string{first}, p.Services...) {
		q := p
		q.Settings, q.Overrides = maps.Clone(p.Settings), nil
		changed := false
		for _, o := range p.Overrides {
			if o.Service == name {
				q.Settings[o.Name] = o.Value
				changed = changed || o.Name == policyMaps
			}
		}
		for _, a := range q.serviceAskings(ctx, root, d) {
			if slices.Contains(seen, a) {
				continue
			}
			seen = append(seen, a)
			if i > 0 || changed {
				a.What = name + " in master.cf: " + a.What
			}
			if a.State == Silent && name != first && name != relay {
				a.State = Odd // a transport to some hosts, which may need no policy
			}
			all = append(all, a)
		}
	}
	if slices.ContainsFunc(all, func(a Asking) bool { return a.State == Asks }) {
		for i := range all {
			if all[i].State == Silent {
				all[i].State = Fails
			}
		}
	}
	return all
}

// serviceAskings reports on the one service that has these settings. Postfix asks each
// table until one has an entry, and defers the mail when one fails.
func (p Postconf) serviceAskings(ctx context.Context, root fs.FS, d Daemon) (all []Asking) {
	add := func(state AskingState, dane bool, next, format string, args ...any) {
		all = append(all, Asking{"Postfix " + p.Version.String(), state, dane, fmt.Sprintf(format, args...), next})
	}
	const see = "see sts-tlsmap -recipe postfix"
	var ours *mta.Map
	var others []string
	for _, table := range splitTables(p.Settings[policyMaps]) {
		rest, isSocketmap := strings.CutPrefix(strings.TrimPrefix(table, "proxy:"), "socketmap:")
		if !isSocketmap {
			continue
		}
		colon := max(strings.LastIndexByte(rest, ':'), 0)
		place := rest[:colon]
		i := mta.Find(d.Maps, rest[min(colon+1, len(rest)):])
		switch {
		case !d.listensAt(place, p.Settings["queue_directory"]):
			elsewhere := fmt.Sprintf(policyMaps+" has %s, where this daemon does not listen; it listens at %s", table, strings.Join(d.Listen, ", "))
			if err := connect(ctx, place, p.Settings["queue_directory"]); err != nil {
				add(Fails, false, see, "%s; nobody answers there, and mail waits: %v", elsewhere, err)
			} else {
				others = append(others, elsewhere)
			}
		case i < 0 || d.Maps[i].Format != mta.FormatPostfix:
			add(Fails, false, see, policyMaps+" has %s, but the daemon has no such map for Postfix: mail waits", table)
		case ours == nil:
			ours = &d.Maps[i]
			what := "asks " + table
			if !ours.Enforce {
				what += ", a rehearsal that protects nothing"
			}
			add(Asks, ours.DANE, "", "%s", what)
		}
	}
	for _, other := range others {
		if ours == nil {
			add(Silent, false, see, "%s", other)
		} else {
			add(Odd, false, see, "%s; the first table that has an entry counts", other)
		}
	}
	if len(all) == 0 {
		add(Silent, false, see, policyMaps+" does not ask the daemon: no policy protects its mail")
	}
	if ours == nil || !ours.Enforce {
		return all
	}
	a := &postfixAdvice{p: p, root: root, d: d}
	if a.authorities(); len(a.Parts)+len(a.Warnings) > 0 {
		add(Fails, false, see, "smtp_tls_CAfile = %s, smtp_tls_CApath = %s: %s", p.Settings["smtp_tls_CAfile"], p.Settings["smtp_tls_CApath"], noVerification)
	}
	if !ours.DANE && a.dane() {
		add(Fails, false, see, "smtp_tls_security_level = %s, but map %s has no DANE: an enforced MTA-STS policy overrides DANE, which RFC 8461, 2 forbids",
			p.Settings["smtp_tls_security_level"], ours.Name)
	}
	a.Warnings = nil
	a.risks()
	for _, w := range a.Warnings {
		add(Odd, false, "", "%s", w)
	}
	return all
}

// connect connects to a socketmap server, and returns an error if nobody listens there.
// A relative path, and that of a process in a chroot, is below the folder.
func connect(ctx context.Context, place, folder string) error {
	e, err := endpoint.Parse(place)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	addresses := []string{e.Address}
	if e.Network == "unix" {
		addresses = append(addresses, path.Join(folder, e.Address))
	}
	for _, address := range addresses {
		c, failed := new(net.Dialer).DialContext(ctx, e.Network, address)
		if failed == nil {
			return c.Close()
		}
		if err = cmp.Or(err, failed); errors.Is(failed, fs.ErrPermission) {
			return nil // not known
		}
	}
	return err
}

var readsocket = regexp.MustCompile(`\$\{readsocket\{([^{}]+)\}`)

// eximAsking reports whether one of Exim's routers asks the daemon.
func eximAsking(routers []Instance, d Daemon) Asking {
	a := Asking{MTA: "Exim", State: Silent, Next: "see sts-tlsmap -recipe exim",
		What: "no router asks the daemon: no policy protects its mail"}
	sends := false
	for _, r := range routers {
		sends = sends || r.Options["driver"] == "dnslookup" || r.Options["driver"] == "manualroute"
		for _, value := range r.Options {
			for _, m := range readsocket.FindAllStringSubmatch(value, -1) {
				server := m[1]
				if strings.HasPrefix(server, "/") {
					server = "unix:" + server
				}
				if d.listensAt(server, "") {
					return Asking{MTA: a.MTA, What: fmt.Sprintf("router %s asks %s", r.Name, m[1])}
				}
				a.What = fmt.Sprintf("router %s asks %s, where this daemon does not listen; it listens at %s", r.Name, m[1], strings.Join(d.Listen, ", "))
			}
		}
	}
	if !sends {
		a.State, a.What, a.Next = Asks, "sends no mail to other hosts", ""
	}
	return a
}

// listensAt reports whether the daemon listens at a place. A relative path, and
// that of a process in a chroot, is below the folder.
func (d Daemon) listensAt(place, folder string) bool {
	asked, err := endpoint.Parse(place)
	if err != nil {
		return false
	}
	below := endpoint.Endpoint{Network: asked.Network, Address: path.Join(folder, asked.Address)}
	host, port, _ := net.SplitHostPort(asked.Address)
	return len(d.Listen) == 0 || slices.ContainsFunc(d.Listen, func(s string) bool {
		e, err := endpoint.Parse(s)
		if err != nil || asked.Network != e.Network || e.Network == "unix" {
			return err == nil && (e == asked || e == below)
		}
		ourHost, ourPort, _ := net.SplitHostPort(e.Address)
		ours, _ := netip.ParseAddr(cmp.Or(ourHost, "::"))
		return port == ourPort && (host == ourHost || ours.IsUnspecified() || host == "localhost" && e.Loopback())
	})
}
