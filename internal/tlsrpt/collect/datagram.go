package collect

import (
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

// A Parser reads the datagrams of libtlsrpt. The zero value is ready. It is for one
// goroutine.
type Parser struct {
	Drops Drops // what was not used, by reason

	r        reader
	events   []tlsrpt.Event
	strings  []string
	failures []tlsrpt.Failure
}

// Parse returns the events of a datagram, normalized: one for each policy, at most 8.
// They are valid until the next call.
func (p *Parser) Parse(datagram []byte) []tlsrpt.Event {
	p.events, p.strings, p.failures = p.events[:0], p.strings[:0], p.failures[:0]
	if len(datagram) > MaxDatagram {
		p.Drops.Add(DropTooLong, 1)
		return nil
	}
	p.r = reader{s: string(datagram)}
	domain, dpv, policies := p.report()
	if p.r.next() != 0 || p.r.at < len(p.r.s) {
		p.r.fail(DropMalformed)
	}
	if p.r.failed {
		p.Drops.Add(p.r.why, 1)
		return nil
	}
	if dpv != version {
		p.Drops.Add(DropVersion, 1)
		return nil
	}
	counted := p.events[:0]
	for _, e := range p.events {
		e.Domain = domain
		if e.Normalize() {
			counted = append(counted, e)
		} else {
			p.Drops.Add(DropDomain, 1)
		}
	}
	if policies == 0 {
		p.Drops.Add(DropPolicy, 1)
	}
	return counted
}

// report reads the object that a datagram is. It counts the policies in it.
func (p *Parser) report() (domain, dpv string, policies int) {
	r, seen := &p.r, fieldSet(0)
	dpv = version
	for key := range r.fields {
		switch key {
		case "dpv":
			seen.add(r, 0)
			dpv = p.dpv()
		case "d":
			seen.add(r, 1)
			domain = r.text()
		case "policies":
			seen.add(r, 2)
			policies = p.policies()
		default:
			r.skip()
		}
	}
	return domain, dpv, policies
}

// dpv reads the version; "" is none that is known.
func (p *Parser) dpv() string {
	if p.r.next() == '"' {
		return p.r.text()
	}
	p.r.skip()
	return ""
}

func (p *Parser) policies() (n int) {
	for range p.r.elements {
		if n++; n > maxPolicies {
			p.Drops.Add(DropPolicies, 1)
			p.r.skip()
		} else {
			p.policy()
		}
	}
	return n
}

func (p *Parser) policy() {
	var e tlsrpt.Event
	r, seen := &p.r, fieldSet(0)
	failures, final := int64(-1), int64(-1)
	for key := range r.fields {
		switch key {
		case "policy-type":
			seen.add(r, 0)
			e.Policy.Type = policyTypes[r.number()]
		case "policy-domain":
			seen.add(r, 1)
			e.Policy.Domain = r.text()
		case "policy-string":
			seen.add(r, 2)
			e.Policy.Strings = p.list(DropText, func(s string) (string, bool) { return s, tlsrpt.PolicyString(s) })
		case "mx-host":
			seen.add(r, 3)
			e.Policy.MXHosts = p.list(DropName, tlsrpt.Pattern)
		case "failure-details":
			seen.add(r, 4)
			e.Failures = p.details()
		case "t":
			seen.add(r, 5)
			failures = r.number()
		case "f":
			seen.add(r, 6)
			final = r.number()
		default:
			r.skip()
		}
	}
	switch {
	case r.failed:
		return
	case final == 0 || final == 1: // f counts where t disagrees
		e.Failed = final == 1
	case final == -1 && failures >= 0:
		e.Failed = failures > 0
	default:
		e.Policy.Type = ""
	}
	if e.Policy.Type == "" {
		p.Drops.Add(DropPolicy, 1)
		return
	}
	p.events = append(p.events, e)
}

// list reads an array of strings and keeps those that are valid, in the form that it
// returns.
func (p *Parser) list(why Drop, valid func(string) (string, bool)) []string {
	begin := len(p.strings)
	for range p.r.elements {
		s, ok := valid(p.r.text())
		switch {
		case p.r.failed:
		case !ok:
			p.Drops.Add(why, 1)
		case len(p.strings)-begin == tlsrpt.MaxPolicyStrings:
			p.Drops.Add(DropStrings, 1)
		default:
			p.strings = append(p.strings, s)
		}
	}
	return p.strings[begin:len(p.strings):len(p.strings)]
}

func (p *Parser) details() []tlsrpt.Failure {
	begin := len(p.failures)
	for range p.r.elements {
		f := p.detail()
		if len(p.failures)-begin == tlsrpt.MaxFailures {
			p.Drops.Add(DropDetails, 1)
		} else {
			p.failures = append(p.failures, f)
		}
	}
	return p.failures[begin:len(p.failures):len(p.failures)]
}

func (p *Parser) detail() (f tlsrpt.Failure) {
	r, seen := &p.r, fieldSet(0)
	for key := range r.fields {
		ok, why := true, DropName
		switch key {
		case "c":
			seen.add(r, 0)
			f.Result = results[r.number()]
		case "s":
			seen.add(r, 1)
			f.SendingIP = tlsrpt.Address(r.text())
			ok = f.SendingIP.IsValid()
		case "n":
			seen.add(r, 2)
			f.MXHost, ok = tlsrpt.Host(r.text())
		case "h":
			seen.add(r, 3)
			f.HELO = tlsrpt.HELO(r.text())
			ok = f.HELO != ""
		case "r":
			seen.add(r, 4)
			f.ReceivingIP = tlsrpt.Address(r.text())
			ok = f.ReceivingIP.IsValid()
		case "f":
			seen.add(r, 5)
			if f.Reason = r.text(); !tlsrpt.Reason(f.Reason) {
				f.Reason, ok, why = "", false, DropText
			}
		default: // a: additional-information must be a URI, and Postfix sends none
			r.skip()
		}
		if !ok && !r.failed {
			p.Drops.Add(why, 1)
		}
	}
	return f
}

// A fieldSet is the known keys that an object has had. A key that comes twice fails the
// datagram: two readers could take it for two things.
type fieldSet uint

func (s *fieldSet) add(r *reader, field uint) {
	if *s&(1<<field) != 0 {
		r.fail(DropDuplicate)
	}
	*s |= 1 << field
}
