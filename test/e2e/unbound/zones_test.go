//go:build e2e

package unbound

import (
	"fmt"
	"strings"
	"testing"
)

const (
	tlsaData  = "3 1 1 0101010101010101010101010101010101010101010101010101010101010101"
	otherData = "3 1 1 0202020202020202020202020202020202020202020202020202020202020202"
	pkixData  = "1 1 1 0101010101010101010101010101010101010101010101010101010101010101"
)

// signedZone has all kinds of domains. _tcp.relay has its own record because
// unbound 1.17 cannot prove from auth-zones with NSEC3 that a name below an
// empty non-terminal does not exist.
const signedZone = `
mx            A    192.0.2.1
_25._tcp.mx   TLSA ` + tlsaData + `
six           AAAA 2001:db8::1
_25._tcp.six  TLSA ` + tlsaData + `
bare          A    192.0.2.2
pkix          A    192.0.2.3
_25._tcp.pkix TLSA ` + pkixData + `

good          MX 10 mx
ipv6          MX 10 six
some          MX 10 bare
some          MX 20 mx
none          MX 10 bare
unusable      MX 10 pkix
*.wild        MX 10 mx
null          MX 0 .
gone          MX 10 nothere
outside       MX 10 mx.unsigned.example.

implicit         A    192.0.2.4
_25._tcp.implicit TLSA ` + tlsaData + `

toalias        MX 10 alias
alias          CNAME mx
tooriginal     MX 10 original
original       CNAME bare
_25._tcp.original TLSA ` + tlsaData + `
intounsigned   MX 10 leaves
leaves         CNAME mx.unsigned.example.
_25._tcp.leaves TLSA ` + tlsaData + `
intounsigned2  MX 10 leaves2
leaves2        CNAME mx.unsigned.example.
domainalias    CNAME good

relay          A    192.0.2.5
_tcp.relay     TXT  "not empty"
_587._tcp.relay TLSA ` + tlsaData + `
tlsaalias      MX 10 indirect
indirect       A    192.0.2.6
_25._tcp.indirect CNAME _25._tcp.mx
`

// unsignedZone can be forged by anybody.
const unsignedZone = `
@             MX 10 mx.signed.example.
mx            A    192.0.2.9
_25._tcp.mx   TLSA ` + tlsaData + `
none          A    192.0.2.8
`

// bogusZone has three records that are replaced after signing.
const bogusZone = `
mx            A    192.0.2.1
_25._tcp.mx   TLSA ` + tlsaData + `
good          MX 10 mx
forgedmx      MX 77 mx
addr          MX 10 badaddr
badaddr       A    192.0.2.77
_25._tcp.badaddr TLSA ` + tlsaData + `
tlsa          MX 10 badtlsa
badtlsa       A    192.0.2.1
_25._tcp.badtlsa TLSA ` + otherData + `
addrandgood   MX 10 badaddr
addrandgood   MX 20 mx
`

// tampering has the replacements in bogusZone.
var tampering = []string{
	"MX\t77 ", "MX\t78 ",
	"192.0.2.77", "192.0.2.78",
	strings.TrimPrefix(otherData, "3 1 1 "), strings.Replace(strings.TrimPrefix(otherData, "3 1 1 "), "02", "03", 1),
}

// makeZones writes the three zones, signed with these options of ldns-signzone.
func makeZones(t *testing.T, dir string, options ...string) []*Zone {
	t.Helper()
	signed := WriteZone(t, dir, "signed.example", signedZone+manyTXT())
	bogus := WriteZone(t, dir, "bogus.example", bogusZone)
	signed.Sign(t, options...)
	bogus.Sign(t, options...)
	bogus.Tamper(t, tampering...)
	return []*Zone{signed, bogus, WriteZone(t, dir, "unsigned.example", unsignedZone)}
}

// manyTXT returns an RRset too large for a datagram.
func manyTXT() string {
	var b strings.Builder
	for i := range 40 {
		fmt.Fprintf(&b, "large TXT \"%02d %s\"\n", i, strings.Repeat("x", 100))
	}
	return b.String()
}
