// Package endpoint says where a server listens or a client connects, in the
// syntax of Postfix's socketmap_table(5): "inet:HOST:PORT" or "unix:/PATH", and
// listens there. It resolves no names, and accepts no connections.
package endpoint

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// MaxPath is the longest path of a unix socket, in bytes: what fits a
// sockaddr_un (unix(7)), less the closing zero.
const MaxPath = 107

// An Endpoint is where a server listens or a client connects. The zero
// Endpoint is none.
type Endpoint struct {
	Network string // "tcp" or "unix"
	Address string // host and port as net.Dial takes them, or the path
}

// Of returns the endpoint of an open listener's address.
func Of(a net.Addr) Endpoint { return Endpoint{Network: a.Network(), Address: a.String()} }

// Parse reads an endpoint: "inet:HOST:PORT", with brackets around an IPv6
// address, or "unix:/PATH". Port 0 listens on any free port. The error says
// what to write instead.
func Parse(s string) (Endpoint, error) {
	e, err := ParseRelative(s)
	if err == nil && e.Network == "unix" && !filepath.IsAbs(e.Address) {
		return Endpoint{}, fmt.Errorf(`endpoint %q: the path must be absolute, such as "unix:/run/sts-tlsmap/map.sock"`, s)
	}
	return e, err
}

// ParseRelative is Parse for whoever knows from where a relative path is taken
// (In): it reads "unix:PATH", too.
func ParseRelative(s string) (Endpoint, error) {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "inet":
		return parseInet(s, rest)
	case "unix":
		return parseUnix(s, rest)
	}
	hint := `write "inet:HOST:PORT" or "unix:/PATH"`
	if strings.HasPrefix(s, "/") {
		hint = fmt.Sprintf("write %q", "unix:"+s)
	} else if host, _, err := net.SplitHostPort(s); err == nil && host != "" {
		hint = fmt.Sprintf("write %q", "inet:"+s)
	}
	return Endpoint{}, fmt.Errorf("endpoint %q: it begins with neither inet: nor unix:; %s", s, hint)
}

func parseInet(s, address string) (Endpoint, error) {
	fail := func(format string, args ...any) (Endpoint, error) {
		return Endpoint{}, fmt.Errorf("endpoint %q: %s", s, fmt.Sprintf(format, args...))
	}
	host, port, err := net.SplitHostPort(address)
	var wrong *net.AddrError
	switch {
	case errors.As(err, &wrong) && strings.Count(address, ":") > 1:
		return fail(`an IPv6 address stands in brackets: "inet:[::1]:8461"`)
	case err != nil:
		return fail(`write "inet:HOST:PORT", such as "inet:127.0.0.1:8461"`)
	case host == "":
		return fail(`the host is missing; write "inet:127.0.0.1:%s" for this machine only, `+
			`"inet:0.0.0.0:%[1]s" or "inet:[::]:%[1]s" for all its addresses`, port)
	case host == "*":
		return fail(`write "inet:0.0.0.0:%s" or "inet:[::]:%[1]s" for all addresses`, port)
	case strings.ContainsAny(host, " \t\r\n/"):
		return fail("%q is neither an address nor a host name", host)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fail("the port %q is not a number from 0 to 65535", port)
	}
	return Endpoint{"tcp", net.JoinHostPort(host, strconv.FormatUint(n, 10))}, nil
}

func parseUnix(s, path string) (Endpoint, error) {
	switch {
	case path == "":
		return Endpoint{}, fmt.Errorf(`endpoint %q: the path is missing; write an absolute one, such as "unix:/run/sts-tlsmap/map.sock"`, s)
	case strings.ContainsRune(path, 0):
		return Endpoint{}, fmt.Errorf("endpoint %q: the path holds a zero byte", s)
	case len(path) > MaxPath:
		return Endpoint{}, fmt.Errorf("endpoint %q: the path has %d bytes, the system allows %d; choose a shorter one",
			s, len(path), MaxPath)
	}
	return Endpoint{"unix", path}, nil
}

// String returns the endpoint as Parse reads it; "" for none.
func (e Endpoint) String() string {
	switch e.Network {
	case "":
		return ""
	case "tcp":
		return "inet:" + e.Address
	}
	return e.Network + ":" + e.Address
}

// In returns the endpoint with a relative path taken from the folder dir.
func (e Endpoint) In(dir string) Endpoint {
	if e.Network == "unix" && !filepath.IsAbs(e.Address) {
		e.Address = filepath.Join(dir, e.Address)
	}
	return e
}

// AnyPort says whether the system chooses the port.
func (e Endpoint) AnyPort() bool { return e.Network == "tcp" && strings.HasSuffix(e.Address, ":0") }

// Loopback says whether only this machine can reach the endpoint.
func (e Endpoint) Loopback() bool {
	if e.Network != "tcp" {
		return true
	}
	host, _, err := net.SplitHostPort(e.Address)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}

// Local returns where this machine reaches the endpoint, and whether that stays
// on it: one at all addresses is reached on loopback.
func (e Endpoint) Local() (Endpoint, bool) {
	host, port, err := net.SplitHostPort(e.Address)
	if e.Network != "tcp" || err != nil {
		return e, e.Loopback()
	}
	switch a, err := netip.ParseAddr(host); {
	case host == "", err == nil && a.Is4() && a.IsUnspecified():
		return Endpoint{"tcp", net.JoinHostPort("127.0.0.1", port)}, true
	case err == nil && a.IsUnspecified():
		return Endpoint{"tcp", net.JoinHostPort("::1", port)}, true
	}
	return e, e.Loopback()
}
