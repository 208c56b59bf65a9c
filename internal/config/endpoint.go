package config

import (
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// An Endpoint is where something listens, in Postfix's syntax: "inet:host:port"
// or "unix:/path". The zero Endpoint is none.
type Endpoint struct {
	Network string // "tcp" or "unix", as package net has it
	Address string
}

// maxUnixPath is what fits a sockaddr_un (unix(7)), less the closing zero.
const maxUnixPath = 107

const wantEndpoint = `"inet:ADDRESS:PORT", as "inet:127.0.0.1:8461", or "unix:/PATH" of at most 107 bytes`

func (e Endpoint) String() string {
	switch e.Network {
	case "tcp":
		return "inet:" + e.Address
	case "unix":
		return "unix:" + e.Address
	}
	return ""
}

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

// anyPort says whether the system chooses the port.
func (e Endpoint) anyPort() bool { return e.Network == "tcp" && strings.HasSuffix(e.Address, ":0") }

// in resolves a relative path from dir.
func (e Endpoint) in(dir string) Endpoint {
	if e.Network == "unix" && !filepath.IsAbs(e.Address) {
		e.Address = filepath.Join(dir, e.Address)
	}
	return e
}

// parseEndpoint reads an endpoint. A host is an address or "localhost": the
// daemon listens before anything can be resolved.
func parseEndpoint(s string) (Endpoint, bool) {
	if path, found := strings.CutPrefix(s, "unix:"); found {
		ok := path != "" && len(path) <= maxUnixPath && !strings.ContainsRune(path, 0)
		return Endpoint{Network: "unix", Address: path}, ok
	}
	addr, found := strings.CutPrefix(s, "inet:")
	if !found {
		return Endpoint{}, false
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return Endpoint{}, false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return Endpoint{}, false
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
		return Endpoint{}, false
	}
	return Endpoint{Network: "tcp", Address: net.JoinHostPort(host, strconv.FormatUint(n, 10))}, true
}

func parseUnix(s string) (Endpoint, bool) {
	e, ok := parseEndpoint(s)
	return e, ok && e.Network == "unix"
}

func parseMetrics(s string) (Endpoint, bool) {
	if s == "" {
		return Endpoint{}, true
	}
	e, ok := parseEndpoint(s)
	return e, ok && e.Network == "tcp"
}
