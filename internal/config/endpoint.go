package config

import (
	"net"
	"net/netip"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

const wantEndpoint = `"inet:ADDRESS:PORT", as "inet:127.0.0.1:8461", or "unix:/PATH" of at most 107 bytes`

// parseEndpoint reads an endpoint. A host is an address or "localhost": the
// daemon listens before anything can be resolved. A path may be relative:
// finish takes it from the folder of the file.
func parseEndpoint(s string) (endpoint.Endpoint, bool) {
	e, err := endpoint.ParseRelative(s)
	if err != nil || e.Network == "unix" {
		return e, err == nil
	}
	host, _, _ := net.SplitHostPort(e.Address)
	_, err = netip.ParseAddr(host)
	return e, err == nil || host == "localhost"
}

func parseUnix(s string) (endpoint.Endpoint, bool) {
	e, ok := parseEndpoint(s)
	return e, ok && e.Network == "unix"
}

func parseMetrics(s string) (endpoint.Endpoint, bool) {
	if s == "" {
		return endpoint.Endpoint{}, true
	}
	e, ok := parseEndpoint(s)
	return e, ok && e.Network == "tcp"
}
