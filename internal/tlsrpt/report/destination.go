package report

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// A Destination is a URI of a record to which reports go. A record is a stranger's
// text: a destination names one address or one public web host, and nothing that a
// program on the way could take for something else.
type Destination struct {
	URI     string // normalized: equal destinations have equal URIs; at most maxURI bytes
	Address string // of a mailto URI; empty for https
	Host    string // the domain of the address, or the host of the URL: lower case, two labels or more
}

// Name is what an administrator calls the destination to have no reports sent there: the
// address in lower case, or the URL.
func (d Destination) Name() string {
	if d.Address != "" {
		return hostname.Lower(d.Address)
	}
	return d.URI
}

// The bounds of a URI, in bytes.
const (
	maxURI     = 1000
	maxAddress = 254 // RFC 5321, 4.5.3.1.3 without the angle brackets
	maxLocal   = 64  // RFC 5321, 4.5.3.1.1
)

var (
	// The characters of a URI (RFC 3986, 2), but for ! , ; which are percent-encoded in
	// a record (RFC 8460, 3).
	uriCharacters = regexp.MustCompile(`^[A-Za-z0-9._~:/?#@$&'()*+=%[\]-]+$`)
	// A local part is atoms with dots between them (RFC 5322, 3.2.3), but without
	// characters that have a second meaning to some MTA or shell: ! % / | $ ^ ` { } ?
	localPart = regexp.MustCompile(`^[A-Za-z0-9_+=~&'*#][A-Za-z0-9_+=~&'*#-]*(\.[A-Za-z0-9_+=~&'*#-]+)*$`)
)

// ParseDestination parses one URI of a record (RFC 8460, 3): mailto with one bare
// address, or https at port 443.
func ParseDestination(uri string) (Destination, error) {
	if len(uri) > maxURI || !uriCharacters.MatchString(uri) {
		return Destination{}, fmt.Errorf("%s is not a URI", quote(uri))
	}
	scheme, rest, _ := strings.Cut(uri, ":")
	switch hostname.Lower(scheme) {
	case "mailto":
		address, err := url.PathUnescape(rest)
		if err != nil || strings.ContainsAny(rest, "?#") {
			return Destination{}, fmt.Errorf("%s is not the URI of a bare address", quote(uri))
		}
		return ParseAddress(address)
	case "https":
		return parseURL(uri)
	}
	return Destination{}, fmt.Errorf("%s is neither a mailto nor an https URI", quote(uri))
}

// ParseAddress returns the destination of one mail address. Its domain has two labels
// or more, and its local part is neither quoted nor begins with a hyphen.
func ParseAddress(address string) (Destination, error) {
	local, domain, _ := strings.Cut(address, "@")
	host := hostname.Lower(domain)
	if len(address) > maxAddress || len(local) > maxLocal || !localPart.MatchString(local) || !publicName(host) {
		return Destination{}, fmt.Errorf("%s is not a plain mail address", quote(address))
	}
	address = local + "@" + host
	return Destination{URI: "mailto:" + address, Address: address, Host: host}, nil
}

func parseURL(uri string) (Destination, error) {
	u, err := url.Parse(uri)
	if err != nil || u.Opaque != "" || u.User != nil || u.Port() != "" && u.Port() != "443" || strings.Contains(uri, "#") {
		return Destination{}, fmt.Errorf("%s is not an https URI at port 443 without user and fragment", quote(uri))
	}
	host := hostname.Lower(u.Hostname())
	if !publicName(host) {
		return Destination{}, fmt.Errorf("%s has no host name", quote(uri))
	}
	normal := url.URL{Scheme: "https", Host: host, Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery}
	if normal.Path == "" {
		normal.Path = "/"
	}
	return Destination{URI: normal.String(), Host: host}, nil
}

// publicName reports whether host is a name of two labels or more, and no address.
func publicName(host string) bool {
	return hostname.Labels(host, hostname.Underscore) > 1 && !hostname.EndsInNumber(host)
}
