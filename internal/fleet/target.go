package fleet

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// The kinds of engine.
const (
	kindSingle   = "single"
	kindSentinel = "sentinel"
	kindCluster  = "cluster"
)

// A target is what [fleet] url names.
type target struct {
	kind  string
	tls   bool
	user  string
	hosts []string // "host:port", or the path of a unix socket; the Sentinels; some servers of the Cluster
	name  string   // of the primary, as the Sentinels call it
}

var schemes = map[string]target{
	"valkey": {kind: kindSingle}, "valkeys": {kind: kindSingle, tls: true},
	"redis": {kind: kindSingle}, "rediss": {kind: kindSingle, tls: true}, "unix": {kind: kindSingle},
	"sentinel": {kind: kindSentinel}, "sentinels": {kind: kindSentinel, tls: true},
	"cluster": {kind: kindCluster}, "clusters": {kind: kindCluster, tls: true},
}

const expectedURL = `"valkey://USER@HOST:PORT", "sentinel://HOST,HOST/NAME" or "cluster://HOST,HOST" (with TLS: "valkeys", "sentinels", "clusters"), or "unix:///PATH"`

// parseURL parses [fleet] url. The password is not part of it: it would show in -check.
func parseURL(url string) (t target, err error) {
	wrong := fmt.Errorf("url %q; expected %s", url, expectedURL)
	scheme, rest, ok := strings.Cut(url, "://")
	t, known := schemes[scheme]
	if !ok || !known {
		return t, wrong
	}
	if user, hosts, ok := strings.Cut(rest, "@"); ok {
		t.user, rest = user, hosts
	}
	if strings.Contains(t.user, ":") {
		return t, fmt.Errorf("url has a password; expected it in password_file")
	}
	if scheme == "unix" {
		if t.hosts = []string{rest}; !strings.HasPrefix(rest, "/") {
			return t, wrong
		}
		return t, nil
	}
	rest, t.name, _ = strings.Cut(rest, "/")
	if (t.name != "") != (t.kind == kindSentinel) || t.kind == kindSingle && strings.Contains(rest, ",") {
		return t, wrong
	}
	port := "6379"
	if t.kind == kindSentinel {
		port = "26379"
	}
	for _, host := range strings.Split(rest, ",") {
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), port)
		}
		name, port, _ := net.SplitHostPort(host)
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || name == "" {
			return t, wrong
		}
		t.hosts = append(t.hosts, host)
	}
	return t, nil
}

// isLocal says whether all hosts are on this machine.
func (t *target) isLocal() bool {
	for _, host := range t.hosts {
		name, _, err := net.SplitHostPort(host)
		addr, _ := netip.ParseAddr(name)
		if err == nil && name != "localhost" && !addr.IsLoopback() {
			return false
		}
	}
	return true
}

// warnings are about an engine across a network.
func (t *target) warnings(hasPassword bool) (list []string) {
	if t.isLocal() {
		return nil
	}
	if !t.tls {
		list = append(list, "the fleet's engine is asked across the network without TLS: others may read and delay what relays share; use valkeys:// in [fleet] url")
	}
	if !hasPassword {
		list = append(list, "the fleet's engine takes commands without a password: others may delete what relays share; set password_file in [fleet]")
	}
	return list
}
