package probe

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// A Certificate is what people want to know of a host's certificate.
type Certificate struct {
	Names     []string  `json:"names"` // DNS names, at most maxNames
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Issuer    string    `json:"issuer"`
}

const maxNames = 20

func describe(c *x509.Certificate) *Certificate {
	names := []string{}
	for _, name := range certNames(c)[:min(len(certNames(c)), maxNames)] {
		names = append(names, text.Cut(name, 255))
	}
	return &Certificate{names, c.NotBefore.UTC(), c.NotAfter.UTC(), text.Cut(c.Issuer.String(), 255)}
}

// certNames are the names that Postfix matches: without a DNS-ID, the common name.
func certNames(c *x509.Certificate) []string {
	if len(c.DNSNames) == 0 && c.Subject.CommonName != "" {
		return []string{c.Subject.CommonName}
	}
	return c.DNSNames
}

// mismatch is the Outcome of a certificate without the right name.
func mismatch(leaf *x509.Certificate) Outcome {
	words := cmp.Or(strings.Join(describe(leaf).Names, ", "), "no host name")
	return fails(tlsrpt.CertificateHostMismatch, "the certificate is for %s", text.Printable(text.Cut(words, 100)))
}

// trusted verifies a chain but not its names: it must end at a root, and all its dates
// must be right (RFC 8461, 4.2).
func trusted(chain []*x509.Certificate, roots *x509.CertPool) Outcome {
	leaf := chain[0]
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool(chain[1:]...)})
	invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case err == nil:
		return passes("")
	case invalid.Cert != nil && invalid.Reason == x509.Expired && time.Now().After(invalid.Cert.NotAfter):
		return fails(tlsrpt.CertificateExpired, "the certificate expired on %s", text.Clock(invalid.Cert.NotAfter))
	case invalid.Cert != nil && invalid.Reason == x509.Expired:
		return fails(tlsrpt.CertificateNotTrusted, "the certificate is not valid before %s", text.Clock(invalid.Cert.NotBefore))
	case bytes.Equal(leaf.RawIssuer, leaf.RawSubject):
		return fails(tlsrpt.CertificateNotTrusted, "the certificate is self-signed")
	}
	return fails(tlsrpt.CertificateNotTrusted, "the certificate from %s: %s", text.Printable(describe(leaf).Issuer), printable(err))
}

// matches says whether a certificate has a name that a match list of Postfix accepts,
// as Postfix before 3.10.5 reads it: ".example.net" is any name below example.net.
func matches(leaf *x509.Certificate, list []string) bool {
	return slices.ContainsFunc(certNames(leaf), func(name string) bool {
		name = hostname.Lower(name)
		return slices.ContainsFunc(list, func(entry string) bool {
			_, parent, _ := strings.Cut(entry, ".")
			return name == entry || name == "*."+parent || entry[0] == '.' && strings.HasSuffix(name, entry)
		})
	})
}

// authenticated verifies a chain with usable TLSA records (RFC 7672, 3.1). The names
// are those that a certificate may have with usage DANE-TA(2).
func authenticated(chain []*x509.Certificate, records []resolver.TLSA, names ...string) Outcome {
	leaf := chain[0]
	nearly := fails(tlsrpt.CertificateNotTrusted, "no TLSA record matches the certificate")
	for _, rr := range records {
		if rr.Usage == 3 && matchesTLSA(leaf, rr) { // RFC 7672, 3.1.1: neither names nor dates count
			return passes("")
		}
		anchors := slices.Clone(chain[1:])
		if c, err := x509.ParseCertificate(rr.Data); err == nil { // of matching type 0: the host need not send it
			anchors = append(anchors, c)
		}
		for _, anchor := range anchors { // RFC 7672, 3.1.2
			if rr.Usage != 2 || !matchesTLSA(anchor, rr) {
				continue
			}
			nearly = trusted(chain, pool(anchor))
			if nearly.State == Passes && !slices.ContainsFunc(names, func(n string) bool { return leaf.VerifyHostname(n) == nil }) {
				nearly = mismatch(leaf)
			}
			if nearly.State == Passes {
				return nearly
			}
		}
	}
	return nearly
}

// matchesTLSA says whether a record is of a certificate (RFC 6698, 2.1).
func matchesTLSA(c *x509.Certificate, rr resolver.TLSA) bool {
	selected := c.Raw
	if rr.Selector == 1 {
		selected = c.RawSubjectPublicKeyInfo
	}
	switch rr.MatchingType {
	case 1:
		sum := sha256.Sum256(selected)
		selected = sum[:]
	case 2:
		sum := sha512.Sum512(selected)
		selected = sum[:]
	}
	return bytes.Equal(selected, rr.Data)
}

func pool(certs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}
