package recipe

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// An Asking is whether an MTA of this machine asks the daemon.
type Asking struct {
	MTA  string // "Postfix 3.10.5", "Exim"
	Asks bool   // the daemon, for a map that it has; or the MTA sends no mail
	DANE bool   // the map is one with DANE
	What string // what was found
	Next string // what to do if it does not ask
}

// Askings returns whether the MTAs on this machine ask the daemon; none if there is
// no MTA. Where d.Listen is empty, nobody knows where the daemon listens, and any
// place counts.
func Askings(ctx context.Context, d Daemon) (all []Asking) {
	if path, err := FindPostconf(); err == nil {
		p, err := ReadPostconf(ctx, path)
		a := Asking{MTA: "Postfix", What: fmt.Sprint(err), Next: "see what it says: " + path + " -x"}
		if err == nil {
			a = p.Asking(d)
		}
		all = append(all, a)
	}
	if path, err := FindExim(); err == nil {
		out, err := ask(ctx, path, [][]string{{"-bP", "routers"}})
		a := Asking{MTA: "Exim", What: fmt.Sprint(err), Next: "see what it says: " + path + " -bP routers"}
		if err == nil {
			a = eximAsking(instances(out[0]), d)
		}
		all = append(all, a)
	}
	return all
}

// Asking reports whether this Postfix asks the daemon. The first socketmap table
// decides: Postfix looks no further when that one answers, and defers when it fails.
func (p Postconf) Asking(d Daemon) Asking {
	a := Asking{MTA: "Postfix " + p.Version.String(), Next: "see sts-tlsmap -recipe postfix"}
	tables := splitTables(p.Settings["smtp_tls_policy_maps"])
	for _, o := range p.Overrides {
		if o.Name == "smtp_tls_policy_maps" {
			tables = append(tables, splitTables(o.Value)...)
		}
	}
	for _, table := range tables {
		rest, isSocketmap := strings.CutPrefix(table, "socketmap:")
		if !isSocketmap {
			continue
		}
		colon := max(strings.LastIndexByte(rest, ':'), 0)
		name := rest[min(colon+1, len(rest)):]
		i := mta.Find(d.Maps, name)
		switch {
		case !d.listensAt(rest[:colon], p.Settings["queue_directory"]):
			a.What = fmt.Sprintf("smtp_tls_policy_maps has %s, where this daemon does not listen; it listens at %s", table, strings.Join(d.Listen, ", "))
		case i < 0 || d.Maps[i].Format != mta.FormatPostfix:
			a.What = fmt.Sprintf("smtp_tls_policy_maps has %s, but the daemon has no such map for Postfix: mail waits", table)
		default:
			a.Asks, a.DANE = true, d.Maps[i].DANE
			a.What = "asks " + table
			if !d.Maps[i].Enforce {
				a.What += ", a rehearsal that protects nothing"
			}
		}
		return a
	}
	a.What = "smtp_tls_policy_maps does not ask the daemon: no policy protects its mail"
	return a
}

var readsocket = regexp.MustCompile(`\$\{readsocket\{([^{}]+)\}`)

// eximAsking reports whether one of Exim's routers asks the daemon.
func eximAsking(routers []Instance, d Daemon) Asking {
	a := Asking{MTA: "Exim", Next: "see sts-tlsmap -recipe exim",
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
					return Asking{MTA: a.MTA, Asks: true, What: fmt.Sprintf("router %s asks %s", r.Name, m[1])}
				}
				a.What = fmt.Sprintf("router %s asks %s, where this daemon does not listen; it listens at %s", r.Name, m[1], strings.Join(d.Listen, ", "))
			}
		}
	}
	if !sends {
		a.Asks, a.What = true, "sends no mail to other hosts"
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
