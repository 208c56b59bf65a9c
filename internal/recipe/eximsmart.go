package recipe

import (
	"net/netip"
	"strings"
)

// A smartHost is where a relay sends all mail that is not for itself.
type smartHost struct {
	router string // empty: the relay looks up the hosts of each domain
	host   string // empty: it is not one host's name
	port   string // empty: 25
	useMX  bool   // the hosts are those of the name's MX records
	text   string // what the router has
}

// key is the key of the map exim: in brackets a name is the host itself.
func (s smartHost) key() string {
	if s.useMX {
		return s.host
	}
	return "[" + s.host + "]"
}

// findSmartHost looks for a manualroute that takes what no other router
// does: the last one that sends mail to other hosts, or an earlier one for all
// domains.
func (a *eximAdvice) findSmartHost() smartHost {
	last := a.remoteRouter()
	if last == nil {
		return smartHost{}
	}
	for _, r := range a.c.Routers {
		if r.Options["driver"] != "manualroute" || r.Name == hostsRouter || !a.sends(r) {
			continue
		}
		if r.Name == last.Name || takesAll(r) {
			s := readRoute(r)
			s.router = r.Name
			return s
		}
	}
	return smartHost{}
}

// takesAll reports whether a manualroute takes all domains but some that it
// names.
func takesAll(r Instance) bool {
	for _, o := range []string{"condition", "senders", "local_parts"} {
		if r.Options[o] != "" {
			return false
		}
	}
	for item := range strings.SplitSeq(r.Options["domains"], ":") {
		if item = strings.TrimSpace(item); item != "" && item != "*" && item[0] != '!' {
			return false
		}
	}
	pattern, _, _ := cutSpace(r.Options["route_list"])
	return pattern == "*"
}

// readRoute reads the one host that a manualroute sends everything to, if it
// is one. A rule of route_list is a pattern of domains, a list of hosts, which
// may be in quotes, and options; route_data begins with the hosts. What has
// another form may be one host as well, and is not guessed at.
func readRoute(r Instance) smartHost {
	s := smartHost{text: r.Options["route_data"]}
	hosts := s.text
	if list := r.Options["route_list"]; list != "" {
		s.text = list
		pattern, rest, ok := cutSpace(list)
		if !ok || pattern != "*" && pattern[0] != '!' {
			return s
		}
		hosts = rest
	}
	if strings.ContainsAny(hosts, ";$") {
		return s // several rules, or an expansion
	}
	if quoted, ok := strings.CutPrefix(hosts, `"`); ok {
		hosts, _, _ = strings.Cut(quoted, `"`)
		hosts = strings.TrimSpace(hosts)
	} else {
		hosts, _, _ = cutSpace(hosts)
	}
	host, port, _ := strings.Cut(hosts, "::")
	name, useMX := host, false
	if i := strings.IndexByte(host, '/'); i >= 0 {
		name, useMX = host[:i], strings.EqualFold(host[i:], "/mx")
		if !useMX {
			return s
		}
	}
	if _, err := netip.ParseAddr(name); err == nil || name == "" || strings.Trim(name, hostChars) != "" || strings.Trim(port, "0123456789") != "" {
		return s
	}
	s.host, s.port, s.useMX = name, port, useMX
	return s
}

// hostChars are those of a host's name.
const hostChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-."

// cutSpace cuts at the first white space.
func cutSpace(s string) (before, after string, found bool) {
	s = strings.TrimSpace(s)
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, "", false
	}
	return s[:i], strings.TrimSpace(s[i:]), true
}
