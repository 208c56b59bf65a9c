package collect

import (
	"cmp"
	"encoding/json"
	"net/netip"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// The bounds of a datagram. What is over is dropped and counted.
const (
	// MaxDatagram is in bytes. A policy of 400 MX patterns makes 50 KB.
	MaxDatagram = 256 << 10
	maxPolicies = 8
)

// version is the format that libtlsrpt names in dpv since 0.5.1. 0.5.0rc1 writes the
// same format without dpv.
const version = "1"

// policyTypes and results are the numbers of libtlsrpt's tlsrpt.h.
var (
	policyTypes = map[int64]tlsrpt.PolicyType{1: tlsrpt.TypeTLSA, 2: tlsrpt.TypeSTS, 9: tlsrpt.TypeNone}
	results     = map[int64]tlsrpt.ResultType{
		201: tlsrpt.StartTLSNotSupported,
		202: tlsrpt.CertificateHostMismatch,
		203: tlsrpt.CertificateNotTrusted,
		204: tlsrpt.CertificateExpired,
		205: tlsrpt.ValidationFailure,
		301: tlsrpt.STSPolicyFetchError,
		302: tlsrpt.STSPolicyInvalid,
		303: tlsrpt.STSWebPKIInvalid,
		304: tlsrpt.TLSAInvalid,
		305: tlsrpt.DNSSECInvalid,
		306: tlsrpt.DANERequired,
	}
)

// A datagram is the JSON of libtlsrpt. It has no a in failure-details: additional-information
// must be a URI, and Postfix sends none.
type datagram struct {
	Version  string `json:"dpv"`
	Domain   string `json:"d"`
	Policies []struct {
		Type     int64    `json:"policy-type"`
		Domain   string   `json:"policy-domain"`
		Strings  []string `json:"policy-string"`
		MXHosts  []string `json:"mx-host"`
		Failures *int64   `json:"t"`
		Final    *int64   `json:"f"` // 1: the session failed; counts where t disagrees
		Details  []struct {
			Code        int64  `json:"c"`
			SendingIP   string `json:"s"`
			MXHost      string `json:"n"`
			HELO        string `json:"h"`
			ReceivingIP string `json:"r"`
			Reason      string `json:"f"`
		} `json:"failure-details"`
	} `json:"policies"`
}

// A Parser reads the datagrams of libtlsrpt.
type Parser struct {
	Drops *Drops // what was not used, by reason
}

// Parse returns the events of a datagram, normalized: one for each policy, at most 8.
func (p *Parser) Parse(b []byte) (events []tlsrpt.Event) {
	var d datagram
	switch {
	case len(b) > MaxDatagram:
		p.Drops.Add(DropTooLong, 1)
	case json.Unmarshal(b, &d) != nil:
		p.Drops.Add(DropMalformed, 1)
	case d.Version != "" && d.Version != version:
		p.Drops.Add(DropVersion, 1)
	case len(d.Policies) == 0:
		p.Drops.Add(DropPolicy, 1)
	default:
		return p.events(&d)
	}
	return nil
}

func (p *Parser) events(d *datagram) (events []tlsrpt.Event) {
	for _, v := range most(p, d.Policies, maxPolicies, DropPolicies) {
		result := cmp.Or(v.Final, v.Failures)
		if !p.valid(policyTypes[v.Type] != "" && result != nil && *result >= 0, DropPolicy) {
			continue
		}
		e := tlsrpt.Event{Domain: d.Domain, Policy: tlsrpt.Policy{Type: policyTypes[v.Type], Domain: v.Domain}, Failed: *result > 0}
		for _, s := range most(p, v.Strings, tlsrpt.MaxPolicyStrings, DropStrings) {
			if p.valid(tlsrpt.PolicyString(s), DropText) {
				e.Policy.Strings = append(e.Policy.Strings, s)
			}
		}
		for _, s := range most(p, v.MXHosts, tlsrpt.MaxPolicyStrings, DropStrings) {
			if pattern, ok := tlsrpt.Pattern(s); p.valid(ok, DropName) {
				e.Policy.MXHosts = append(e.Policy.MXHosts, pattern)
			}
		}
		for _, f := range most(p, v.Details, tlsrpt.MaxFailures, DropDetails) {
			host, ok := tlsrpt.Host(f.MXHost)
			p.valid(ok || f.MXHost == "", DropName)
			failure := tlsrpt.Failure{Result: results[f.Code], SendingIP: p.address(f.SendingIP), MXHost: host, HELO: tlsrpt.HELO(f.HELO), ReceivingIP: p.address(f.ReceivingIP)}
			p.valid(failure.HELO != "" || f.HELO == "", DropName)
			if p.valid(tlsrpt.Reason(f.Reason), DropText) {
				failure.Reason = f.Reason
			}
			e.Failures = append(e.Failures, failure)
		}
		if p.valid(e.Normalize(), DropDomain) {
			events = append(events, e)
		}
	}
	return events
}

// most returns the first elements of a list, n at most.
func most[T any](p *Parser, list []T, n int, why Drop) []T {
	if over := len(list) - n; over > 0 {
		p.Drops.Add(why, uint64(over))
		list = list[:n]
	}
	return list
}

// valid counts what is not.
func (p *Parser) valid(ok bool, why Drop) bool {
	if !ok {
		p.Drops.Add(why, 1)
	}
	return ok
}

func (p *Parser) address(s string) netip.Addr {
	a := tlsrpt.Address(s)
	p.valid(a.IsValid() || s == "", DropName)
	return a
}
