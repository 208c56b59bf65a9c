package recipe

import (
	"errors"
	"net"
	"net/netip"
	"strings"
)

// endpoint chooses how Postfix reaches the daemon: over loopback where it can,
// since that is in reach of a chroot and of postmap(1) in any folder.
func (a *advice) endpoint() (string, error) {
	var remote, inside, outside string
	queue := strings.TrimSuffix(a.p.Settings["queue_directory"], "/") + "/"
	for _, e := range a.d.Listen {
		if address, ok := strings.CutPrefix(e, "inet:"); ok {
			local, loopback := localAddress(address)
			if loopback {
				return "inet:" + local, nil
			}
			remote = first(remote, e)
		} else if path, ok := strings.CutPrefix(e, "unix:"); ok {
			if below, ok := strings.CutPrefix(path, queue); ok && queue != "/" {
				inside = first(inside, "unix:"+below)
			} else {
				outside = first(outside, e)
			}
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

// localAddress returns how to reach an address from this machine, if it is on
// loopback or stands for all addresses.
func localAddress(address string) (string, bool) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address, false
	}
	if host == "localhost" {
		return address, true
	}
	addr, err := netip.ParseAddr(host)
	switch {
	case host == "", err == nil && addr.IsUnspecified() && addr.Is4():
		return net.JoinHostPort("127.0.0.1", port), true
	case err == nil && addr.IsUnspecified():
		return net.JoinHostPort("::1", port), true
	}
	return address, err == nil && addr.Unmap().IsLoopback()
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
