// Package endpoint names the place where a server listens or a client connects,
// in the syntax of Postfix's socketmap_table(5), and listens there. It resolves
// no names.
package endpoint

import (
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
// address, or "unix:PATH". Port 0 is any free port. A path may be relative: see
// In.
func Parse(s string) (Endpoint, error) {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "inet":
		host, port, err := net.SplitHostPort(rest)
		n, portErr := strconv.ParseUint(port, 10, 16)
		if err == nil && portErr == nil && host != "" && !strings.ContainsAny(host, "* \t\r\n/") {
			return Endpoint{"tcp", net.JoinHostPort(host, strconv.FormatUint(n, 10))}, nil
		}
	case "unix":
		if rest != "" && len(rest) <= MaxPath && !strings.ContainsRune(rest, 0) {
			return Endpoint{"unix", rest}, nil
		}
	}
	return Endpoint{}, fmt.Errorf(`endpoint %q: expected "inet:HOST:PORT", as "inet:127.0.0.1:8461" or "inet:[::1]:8461", `+
		`or "unix:/PATH" of at most %d bytes`, s, MaxPath)
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

// AnyPort reports whether the system chooses the port.
func (e Endpoint) AnyPort() bool { return e.Network == "tcp" && strings.HasSuffix(e.Address, ":0") }

// Loopback reports whether only this machine can reach the endpoint.
func (e Endpoint) Loopback() bool {
	if e.Network != "tcp" {
		return true
	}
	host, _, _ := net.SplitHostPort(e.Address)
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}

// Local returns where this machine reaches the endpoint, and whether that stays
// on the machine. An endpoint at all addresses is reached on loopback.
func (e Endpoint) Local() (Endpoint, bool) {
	if e.Network == "tcp" {
		host, port, _ := net.SplitHostPort(e.Address)
		a, err := netip.ParseAddr(host)
		switch {
		case host == "", err == nil && a.Is4() && a.IsUnspecified():
			return Endpoint{"tcp", net.JoinHostPort("127.0.0.1", port)}, true
		case err == nil && a.IsUnspecified():
			return Endpoint{"tcp", net.JoinHostPort("::1", port)}, true
		}
	}
	return e, e.Loopback()
}
