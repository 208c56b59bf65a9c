package recipe

import (
	"errors"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

// endpoint chooses how Postfix reaches the daemon: over loopback where it can,
// since that is in reach of a chroot and of postmap(1) in any folder.
func (a *advice) endpoint() (string, error) {
	var remote, inside, outside string
	queue := strings.TrimSuffix(a.p.Settings["queue_directory"], "/") + "/"
	for _, e := range endpoints(a.d.Listen) {
		local, loopback := e.Local()
		below, isBelow := strings.CutPrefix(e.Address, queue)
		switch {
		case e.Network == "tcp" && loopback:
			return local.String(), nil
		case e.Network == "tcp":
			remote = first(remote, e.String())
		case isBelow && queue != "/":
			inside = first(inside, "unix:"+below)
		default:
			outside = first(outside, e.String())
		}
	}
	switch {
	case inside != "":
		a.note("%s is a path below queue_directory: run postmap -q from there.", inside)
		return inside, nil
	case outside != "" && !a.chrooted():
		return outside, nil
	case remote != "":
		a.warn("%s is not a loopback address: replies cross a network, where they can be forged and the protection with them.", remote)
		return remote, nil
	case outside != "":
		a.warn("%s is out of reach for smtp(8), which master.cf puts into a chroot: mail would wait. Have the daemon listen on "+
			"inet:127.0.0.1:8461, or on a socket below %s", outside, queue)
		return outside, nil
	}
	return "", errors.New("the daemon has no endpoint that Postfix can ask: set listen")
}

// endpoints reads the daemon's endpoints. It passes over those of another kind,
// which systemd may have passed to the daemon.
func endpoints(listen []string) []endpoint.Endpoint {
	var list []endpoint.Endpoint
	for _, s := range listen {
		if e, err := endpoint.Parse(s); err == nil {
			list = append(list, e)
		}
	}
	return list
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
