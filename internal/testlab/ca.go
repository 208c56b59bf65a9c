package testlab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"github.com/miekg/dns"
)

// A CertKind is a good certificate or one with a certain defect.
type CertKind uint8

// The kinds of certificates.
const (
	CertGood           CertKind = iota
	CertExpired                 // ended an hour ago
	CertNotYetValid             // begins in an hour
	CertWrongName               // for a name that nobody asks for
	CertSelfSigned              // signed by its own key
	CertOtherCA                 // from Lab.OtherCA, which nobody trusts
	CertNoName                  // the name in the subject's CN only: no DNS-ID (RFC 8461, 4.2)
	CertNoIntermediate          // signed by an intermediate authority, whose certificate is not sent
)

// intermediateName is the issuer of CertNoIntermediate certificates.
const intermediateName = "Intermediate CA 1"

// wrongName is the name in CertWrongName certificates.
const wrongName = "somebody-else.invalid"

// backdated lets daemons with a clock of some days ago trust certificates.
const backdated = 4 * 24 * time.Hour

// A CA is a certification authority whose root signs leaf certificates
// directly. Keys are ECDSA P-256. All leaves share one key.
type CA struct {
	Root *x509.Certificate

	rootKey crypto.Signer
	leafKey crypto.Signer
}

// NewCA creates an authority with a new root.
func NewCA(name string) (*CA, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of %s: %w", name, err)
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the leaf key of %s: %w", name, err)
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.Add(10 * 365 * 24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	root, err := sign(t, t, rootKey.Public(), rootKey)
	if err != nil {
		return nil, fmt.Errorf("signing the root %s: %w", name, err)
	}
	return &CA{Root: root, rootKey: rootKey, leafKey: leafKey}, nil
}

// Issue creates a certificate for DNS names or IP addresses. The chain includes
// the root so that TLSA records of usage 2 can name it (RFC 7672, 3.1.2). For
// CertOtherCA use Lab.Issue.
func (ca *CA) Issue(kind CertKind, names ...string) (tls.Certificate, error) {
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial(),
		NotBefore:    now.Add(-backdated),
		NotAfter:     now.Add(30 * 24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	switch kind {
	case CertExpired:
		t.NotAfter = now.Add(-time.Hour)
	case CertNotYetValid:
		t.NotBefore = now.Add(time.Hour)
	case CertWrongName:
		names = []string{wrongName}
	}
	if len(names) > 0 && len(names[0]) <= 64 { // the maximum length of a CN
		t.Subject.CommonName = names[0]
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	if kind == CertNoName {
		t.DNSNames, t.IPAddresses = nil, nil
	}
	parent, key := ca.Root, ca.rootKey
	switch kind {
	case CertSelfSigned:
		parent, key = t, ca.leafKey
	case CertNoIntermediate:
		parent, key = &x509.Certificate{Subject: pkix.Name{CommonName: intermediateName}}, ca.leafKey
	}
	leaf, err := sign(t, parent, ca.leafKey.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("signing a certificate for %v: %w", names, err)
	}
	c := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: ca.leafKey, Leaf: leaf}
	if kind != CertSelfSigned && kind != CertNoIntermediate {
		c.Certificate = append(c.Certificate, ca.Root.Raw)
	}
	return c, nil
}

// Issue creates a certificate by the authority that kind requires.
func (l *Lab) Issue(kind CertKind, names ...string) (tls.Certificate, error) {
	if kind == CertOtherCA {
		return l.OtherCA.Issue(CertGood, names...)
	}
	return l.CA.Issue(kind, names...)
}

// Pool returns the root as a pool for tls.Config.RootCAs.
func (ca *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.Root)
	return p
}

// PEM returns the root in PEM.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw})
}

// WritePEM writes the root in PEM to a file, for ca_file and smtp_tls_CAfile.
func (ca *CA) WritePEM(path string) error { return os.WriteFile(path, ca.PEM(), 0o644) }

// TLSA returns a TLSA record (RFC 6698) for a certificate of host at port, in
// zone-file form: usages 0 and 2 name the last certificate of the chain, 1 and
// 3 the first.
func TLSA(c tls.Certificate, host string, port, usage, selector, matching int) (string, error) {
	der := c.Certificate[0]
	if usage == 0 || usage == 2 {
		der = c.Certificate[len(c.Certificate)-1]
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "", fmt.Errorf("making a TLSA record for %s: %w", host, err)
	}
	owner := fmt.Sprintf("_%d._tcp.%s", port, dns.Fqdn(host))
	rr := &dns.TLSA{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeTLSA, Class: dns.ClassINET, Ttl: defaultTTL}}
	if err := rr.Sign(usage, selector, matching, cert); err != nil {
		return "", fmt.Errorf("making a TLSA record for %s: %w", host, err)
	}
	return rr.String(), nil
}

func sign(t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// serial returns a random serial number of 120 bits.
func serial() *big.Int {
	var b [15]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	b[0] |= 1       // positive, not zero
	return new(big.Int).SetBytes(b[:])
}
