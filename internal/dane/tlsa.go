package dane

import (
	"encoding/asn1"
	"fmt"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// Numbers of a TLSA record (RFC 6698, 2.1; RFC 7218).
const (
	usageDANETA    = 2
	usageDANEEE    = 3
	selectorCert   = 0
	selectorSPKI   = 1
	matchingFull   = 0
	matchingSHA256 = 1
	matchingSHA512 = 2

	lenSHA256 = 32
	lenSHA512 = 64
)

// tlsaName returns where the TLSA records of a host are (RFC 7672, 2.2.3).
func tlsaName(host string, port uint16) string { return fmt.Sprintf("_%d._tcp.%s", port, host) }

// UsableRecord says whether a TLSA record can authenticate an SMTP server. The PKIX
// usages cannot: there is no agreed list of authorities (RFC 7672, 3.1.3).
func UsableRecord(rr resolver.TLSA) bool {
	if rr.Usage != usageDANETA && rr.Usage != usageDANEEE {
		return false
	}
	if rr.Selector != selectorCert && rr.Selector != selectorSPKI {
		return false
	}
	switch rr.MatchingType {
	case matchingFull:
		return isDER(rr.Data)
	case matchingSHA256:
		return len(rr.Data) == lenSHA256
	case matchingSHA512:
		return len(rr.Data) == lenSHA512
	}
	return false
}

// isDER says whether b is one DER sequence, as a certificate and a public key
// are. It looks no closer: a record that the MTA can use and we discard would
// have MTA-STS override DANE.
func isDER(b []byte) bool {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(b, &v)
	return err == nil && len(rest) == 0 && v.Class == asn1.ClassUniversal && v.Tag == asn1.TagSequence && v.IsCompound && len(v.Bytes) > 0
}
