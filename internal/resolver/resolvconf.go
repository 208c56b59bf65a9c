package resolver

import (
	"bufio"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// A ResolvConf is what resolv.conf(5) says about whom to ask.
type ResolvConf struct {
	Servers  []netip.Addr  // at least one
	TrustAD  bool          // the servers' AD bit is passed on
	Timeout  time.Duration // for one server to answer once; zero: not said
	Attempts int           // rounds through the servers; zero: not said
}

// ReadResolvConf reads a resolv.conf as libc does: lines and options that it
// does not understand are passed over, and a file that names no server stands
// for one on this machine.
func ReadResolvConf(r io.Reader) (ResolvConf, error) {
	var c ResolvConf
	lines := bufio.NewScanner(io.LimitReader(r, maxResolvConf))
	lines.Buffer(nil, maxResolvConf+1)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(c.Servers) < maxServers {
				c.Servers = append(c.Servers, a)
			}
		case "options":
			for _, o := range f[1:] {
				c.setOption(o)
			}
		}
	}
	if len(c.Servers) == 0 {
		c.Servers = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return c, lines.Err()
}

// setOption takes one word of an options line.
func (c *ResolvConf) setOption(option string) {
	key, value, _ := strings.Cut(option, ":")
	n, err := strconv.Atoi(value)
	valid := err == nil && n > 0
	switch {
	case key == "trust-ad":
		c.TrustAD = true
	case key == "timeout" && valid:
		c.Timeout = maxTimeout
		if n < int(maxTimeout/time.Second) {
			c.Timeout = time.Duration(n) * time.Second
		}
	case key == "attempts" && valid:
		c.Attempts = min(n, maxAttempts)
	}
}
