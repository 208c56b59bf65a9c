package collect

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// The bounds of a datagram. What is over is dropped and counted.
const (
	// MaxDatagram is in bytes. A policy of 400 MX patterns makes 50 KB.
	MaxDatagram = 256 << 10
	maxPolicies = 8
	maxDepth    = 8 // of objects and arrays; libtlsrpt's go to 5
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

// A Parser reads the datagrams of libtlsrpt. It is for one goroutine.
type Parser struct {
	Drops *Drops // what was not used, by reason

	failed bool // the datagram is to be dropped
	why    Drop
}

func (p *Parser) fail(why Drop) {
	if !p.failed {
		p.failed, p.why = true, why
	}
}

// Parse returns the events of a datagram, normalized: one for each policy, at most 8.
func (p *Parser) Parse(datagram []byte) []tlsrpt.Event {
	p.failed = false
	var events []tlsrpt.Event
	if len(datagram) > MaxDatagram {
		p.fail(DropTooLong)
	} else {
		events = p.report(p.decode(datagram))
	}
	if p.failed {
		p.Drops.Add(p.why, 1)
		return nil
	}
	return events
}

func (p *Parser) report(o object) (events []tlsrpt.Event) {
	if v, ok := o["dpv"]; ok && v != version {
		p.fail(DropVersion)
	}
	domain, policies := p.text(o, "d"), p.list(o, "policies", maxPolicies, DropPolicies)
	for _, v := range policies {
		e, ok := p.policy(p.object(v))
		switch e.Domain = domain; {
		case p.failed:
			return nil
		case !ok:
			p.Drops.Add(DropPolicy, 1)
		case !e.Normalize():
			p.Drops.Add(DropDomain, 1)
		default:
			events = append(events, e)
		}
	}
	if len(policies) == 0 {
		p.fail(DropPolicy)
	}
	return events
}

// policy returns the session under one policy. It reports whether there is a type and a
// result.
func (p *Parser) policy(o object) (e tlsrpt.Event, ok bool) {
	e.Policy = tlsrpt.Policy{
		Type: policyTypes[p.number(o, "policy-type")], Domain: p.text(o, "policy-domain"),
		Strings: p.texts(o, "policy-string", DropText, func(s string) (string, bool) { return s, tlsrpt.PolicyString(s) }),
		MXHosts: p.texts(o, "mx-host", DropName, tlsrpt.Pattern),
	}
	for _, v := range p.list(o, "failure-details", tlsrpt.MaxFailures, DropDetails) {
		e.Failures = append(e.Failures, p.failure(p.object(v)))
	}
	failures, final := p.number(o, "t"), p.number(o, "f")
	e.Failed = final == 1 || final == none && failures > 0 // f counts where t disagrees
	return e, e.Policy.Type != "" && (final == 0 || final == 1 || final == none && failures >= 0)
}

// failure returns a failure detail. It has no a: additional-information must be a URI, and
// Postfix sends none.
func (p *Parser) failure(o object) (f tlsrpt.Failure) {
	valid := func(key string, why Drop, use func(string) bool) {
		if s := p.text(o, key); s != "" && !use(s) {
			p.Drops.Add(why, 1)
		}
	}
	f.Result = results[p.number(o, "c")]
	valid("s", DropName, func(s string) bool { f.SendingIP = tlsrpt.Address(s); return f.SendingIP.IsValid() })
	valid("n", DropName, func(s string) (ok bool) { f.MXHost, ok = tlsrpt.Host(s); return ok })
	valid("h", DropName, func(s string) bool { f.HELO = tlsrpt.HELO(s); return f.HELO != "" })
	valid("r", DropName, func(s string) bool { f.ReceivingIP = tlsrpt.Address(s); return f.ReceivingIP.IsValid() })
	valid("f", DropText, func(s string) bool {
		if tlsrpt.Reason(s) {
			f.Reason = s
		}
		return f.Reason != ""
	})
	return f
}

// An object is a JSON object: of strings, json.Numbers, arrays, objects and others.
type object map[string]any

// decode reads the object that a datagram is. encoding/json alone takes the last of two
// equal keys, and goes 10,000 levels deep.
func (p *Parser) decode(datagram []byte) object {
	d := json.NewDecoder(bytes.NewReader(datagram))
	d.UseNumber()
	v := p.value(d, 1)
	if _, err := d.Token(); err != io.EOF {
		p.fail(DropMalformed)
	}
	return p.object(v)
}

// value reads the next value.
func (p *Parser) value(d *json.Decoder, depth int) any {
	token := p.token(d)
	begin, ok := token.(json.Delim)
	if !ok {
		return token
	}
	if depth > maxDepth {
		p.fail(DropDepth)
	}
	o, list := make(object), []any{}
	for !p.failed && d.More() {
		if begin == '[' {
			list = append(list, p.value(d, depth+1))
			continue
		}
		key, _ := p.token(d).(string)
		if _, twice := o[key]; twice { // two readers could take it for two things
			p.fail(DropDuplicate)
		}
		o[key] = p.value(d, depth+1)
	}
	if p.token(d); begin == '[' {
		return list
	}
	return o
}

func (p *Parser) token(d *json.Decoder) json.Token {
	token, err := d.Token()
	if err != nil {
		p.fail(DropMalformed)
	}
	return token
}

func (p *Parser) object(v any) object {
	o, ok := v.(object)
	if !ok {
		p.fail(DropMalformed)
	}
	return o
}

// text returns a string of an object, "" if there is none.
func (p *Parser) text(o object, key string) string {
	v, ok := o[key]
	s, isText := v.(string)
	if ok && !isText {
		p.fail(DropMalformed)
	}
	return s
}

// none is the number that is not there.
const none = -1

// number returns an integer of an object; the largest one if it is too large.
func (p *Parser) number(o object, key string) int64 {
	v, ok := o[key]
	if !ok {
		return none
	}
	digits, _ := v.(json.Number)
	n, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		p.fail(DropMalformed)
	}
	return n
}

// list returns the elements of an array, of which there may be most.
func (p *Parser) list(o object, key string, most int, why Drop) []any {
	v, ok := o[key]
	list, isList := v.([]any)
	if ok && !isList {
		p.fail(DropMalformed)
	}
	if len(list) > most {
		p.Drops.Add(why, uint64(len(list)-most))
		list = list[:most]
	}
	return list
}

// texts returns the strings of an array that are valid, in the form that it returns.
func (p *Parser) texts(o object, key string, why Drop, valid func(string) (string, bool)) (texts []string) {
	for _, v := range p.list(o, key, tlsrpt.MaxPolicyStrings, DropStrings) {
		s, isText := v.(string)
		s, ok := valid(s)
		switch {
		case !isText:
			p.fail(DropMalformed)
		case !ok:
			p.Drops.Add(why, 1)
		default:
			texts = append(texts, s)
		}
	}
	return texts
}
