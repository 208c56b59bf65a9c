package collect

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// This file: the lines in which Exim tells of what happens while it talks to a host. The
// macro STS_TLSMAP_EVENT in packaging/exim/macros writes them.

const (
	// MaxLine is in bytes. The macro makes lines of 3.8 KB at most.
	MaxLine = 4 << 10

	maxTalks = 512              // processes of Exim between EHLO and the outcome
	talkTime = 10 * time.Minute // in which an outcome comes: Exim gives a command five minutes
	holdTime = 2 * time.Second  // in which dane:fail follows EHLO
	maxNames = 2000             // bytes of the names in a certificate; longer ones are cut
)

// The fields of a line. All but the event's text are one word, of "!" to "~"; other
// characters are "?".
const (
	inVersion    = iota
	inProcess    // process and message
	inEvent      // the name that Exim has for it
	inError      // errno of msg:host:defer
	inDomain     // the policy domain; in brackets for a smart host
	inHost       // name, and address
	inAddress    //
	inOwnAddress // of this machine
	inCipher     // "y": TLS is on
	inVerified   // 0: the certificate is not verified; other numbers: it is
	inDANE       // "yes": verified by DANE
	inTLSA       // usages of the host's TLSA records, as bits; 0: there are none
	inSTARTTLS   // "y": the EHLO reply has it
	inText       // the EHLO reply, the result type of dane:fail, or an error in Exim's words
	inNotBefore  // of the certificate
	inNotAfter   //
	inSubject    //
	inIssuer     //
	inNames      // DNS names, "?" between them
	fields
)

// A PolicyOf returns the MTA-STS policy of a domain that is in force or in testing, and
// whether mail to the host follows it.
type PolicyOf func(domain, host string) (p tlsrpt.Policy, listed, ok bool)

// An EximParser makes events of Exim's lines. It is for one goroutine.
type EximParser struct {
	Drops  *Drops // what was not used, by reason
	Policy PolicyOf

	talks map[string]*talk // by process
	// verifies: a certificate was verified by a transport for other than enforced policies.
	// Before, its settings or roots may be at fault.
	verifies bool
}

// A talk is what a process of Exim has told of a host, up to the outcome: TLS, or a
// failure. What comes later is told of another host, or is not the host's fault.
type talk struct {
	at            time.Time
	host, address string
	helo          string
	missing       []string // the line if STARTTLS is missing, which counts unless DANE turns out to apply
	over          bool     // a failure is counted; others follow of it
}

// Parse returns the events that a line is the last word on: mostly one or none.
func (p *EximParser) Parse(line []byte, now time.Time) (events []tlsrpt.Event) {
	text, whole := strings.CutSuffix(string(line), "\n")
	f := strings.Split(text, " ")
	switch {
	case len(line) > MaxLine:
		p.Drops.Add(DropTooLong, 1)
		return nil
	case f[inVersion] != version:
		p.Drops.Add(DropVersion, 1)
		return nil
	case !whole || len(f) != fields:
		p.Drops.Add(DropMalformed, 1)
		return nil
	}
	t := p.talks[f[inProcess]]
	switch f[inEvent] {
	case "smtp:ehlo":
		events = p.release(events, t)
		delete(p.talks, f[inProcess])
		helo, _, _ := strings.Cut(strings.TrimPrefix(f[inText], "250?"), "?")
		next := &talk{at: now, helo: strings.Clone(tlsrpt.HELO(helo))}
		if f[inCipher] == "y" {
			return p.add(events, p.session(f, next, now))
		}
		if len(p.talks) >= maxTalks {
			events = p.endOldest(events)
		}
		if p.talks == nil {
			p.talks = make(map[string]*talk)
		}
		head := strings.Split(strings.Join(f[:inText], " "), " ") // the line itself is not kept
		next.host, next.address = head[inHost], head[inAddress]
		p.talks[head[inProcess]] = next
		if f[inSTARTTLS] != "y" && strings.HasPrefix(f[inText], "250") {
			next.missing = head
		}
	case "dane:fail":
		if t == nil || t.host != f[inHost] || t.address != f[inAddress] {
			t = new(talk)
		}
		t.missing, t.over = nil, true
		result, reason := tlsrpt.ResultType(f[inText]), ""
		switch {
		case result == tlsrpt.DNSSECInvalid: // the lookup failed: that may be our resolver's fault
			return events
		case result == tlsrpt.ValidationFailure && f[inNotAfter] != "":
			result = tlsrpt.CertificateNotTrusted
		case result == tlsrpt.ValidationFailure:
			reason = reasonHandshake
		}
		f[inTLSA] = "1"
		e, _ := p.event(f, t, result, reason)
		events = p.add(events, e)
	case "msg:host:defer":
		// Exim shows the errno of an earlier host at one that does not answer.
		if t == nil || t.over || t.host != f[inHost] || t.address != f[inAddress] {
			return events
		}
		result, reason := tlsrpt.StartTLSNotSupported, reasonRefused
		switch {
		case f[inError] == "-37":
			result, reason = certificate(f, now)
		case f[inError] != "-38" || !strings.Contains(f[inText], "attempt?to?start?TLS?failed"):
			return events
		}
		e, _ := p.event(f, t, result, reason)
		events = p.add(events, e)
		t.over = true
	}
	return events
}

// Reasons that stand in reports for what Exim says.
const (
	reasonRefused    = "starttls-refused"
	reasonHandshake  = "tls-handshake-failure" // as Postfix has it, and these too
	reasonSelfSigned = "self-signed_certificate"
	reasonEarly      = "certificate_is_not_yet_valid"
)

// add adds an event in the form of a report.
func (p *EximParser) add(events []tlsrpt.Event, e tlsrpt.Event) []tlsrpt.Event {
	if !e.Normalize() {
		p.Drops.Add(DropDomain, 1)
		return events
	}
	return append(events, e)
}

// release adds a missing STARTTLS that nothing has taken back.
func (p *EximParser) release(events []tlsrpt.Event, t *talk) []tlsrpt.Event {
	if t == nil || t.missing == nil {
		return events
	}
	e, _ := p.event(t.missing, t, tlsrpt.StartTLSNotSupported, "")
	t.missing = nil
	return p.add(events, e)
}

// endOldest makes room for a talk.
func (p *EximParser) endOldest(events []tlsrpt.Event) []tlsrpt.Event {
	var oldest string
	for process, t := range p.talks {
		if oldest == "" || t.at.Before(p.talks[oldest].at) {
			oldest = process
		}
	}
	events = p.release(events, p.talks[oldest])
	delete(p.talks, oldest)
	return events
}

// Expire returns the events that nothing has taken back in time.
func (p *EximParser) Expire(now time.Time) (events []tlsrpt.Event) {
	for process, t := range p.talks {
		if now.Sub(t.at) >= holdTime {
			events = p.release(events, t)
		}
		if now.Sub(t.at) >= talkTime {
			delete(p.talks, process)
		}
	}
	return events
}

// session returns a session with TLS.
func (p *EximParser) session(f []string, t *talk, now time.Time) tlsrpt.Event {
	e, listed := p.event(f, t, tlsrpt.ValidationFailure, tlsrpt.ReasonMXMismatch)
	verified := f[inVerified] != "0"
	p.verifies = p.verifies || verified && f[inDANE] != "yes" && !slices.Contains(e.Policy.Strings, "mode: enforce")
	switch {
	case e.Policy.Type == tlsrpt.TypeSTS && !listed:
	case e.Policy.Type == tlsrpt.TypeSTS && !verified:
		result, reason := certificate(f, now)
		e.Failures[0].Result, e.Failures[0].Reason = result, reason
		if result == tlsrpt.CertificateNotTrusted && reason == "" && !p.verifies {
			e.Policy, e.Failed = tlsrpt.Policy{Type: tlsrpt.TypeNone}, false // as Postfix has it
		}
	default:
		e.Failed = false
	}
	return e
}

// event returns a session with a failure under the policy that applies, and whether that
// lists the host.
func (p *EximParser) event(f []string, t *talk, result tlsrpt.ResultType, reason string) (e tlsrpt.Event, listed bool) {
	e = tlsrpt.Event{Domain: strings.TrimSuffix(strings.TrimPrefix(f[inDomain], "["), "]"), Failed: true,
		Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone}, Failures: []tlsrpt.Failure{{
			Result: result, Reason: reason, HELO: t.helo, SendingIP: tlsrpt.Address(f[inOwnAddress]), ReceivingIP: tlsrpt.Address(f[inAddress]),
		}}}
	host, ok := tlsrpt.Host(f[inHost])
	if !ok {
		p.Drops.Add(DropName, 1)
	}
	e.Failures[0].MXHost = host
	if usages, _ := strconv.Atoi(f[inTLSA]); f[inDANE] == "yes" || usages != 0 {
		e.Policy = tlsrpt.Policy{Type: tlsrpt.TypeTLSA, Domain: host}
	} else if domain, ok := tlsrpt.Domain(e.Domain); ok {
		if policy, lists, ok := p.Policy(domain, host); ok {
			e.Policy, listed = policy, lists
		}
	}
	return e, listed
}

// certificate tells why a certificate was refused. Exim does not say it.
func certificate(f []string, now time.Time) (result tlsrpt.ResultType, reason string) {
	notBefore, _ := strconv.ParseInt(f[inNotBefore], 10, 64)
	notAfter, err := strconv.ParseInt(f[inNotAfter], 10, 64)
	switch {
	case err != nil:
		return tlsrpt.ValidationFailure, reasonHandshake
	case now.Unix() > notAfter:
		return tlsrpt.CertificateExpired, ""
	case now.Unix() < notBefore:
		return tlsrpt.ValidationFailure, reasonEarly
	case f[inIssuer] == f[inSubject]:
		return tlsrpt.CertificateNotTrusted, reasonSelfSigned
	case len(f[inNames]) < maxNames && !named(f):
		return tlsrpt.CertificateHostMismatch, ""
	}
	return tlsrpt.CertificateNotTrusted, ""
}

// named reports whether the certificate has the name of the host. Without DNS names, the
// one in the subject counts, as for GnuTLS.
func named(f []string) bool {
	host := strings.ToLower(f[inHost])
	_, parent, _ := strings.Cut(host, ".")
	names := strings.ToLower(f[inNames])
	if _, cn, ok := strings.Cut(strings.ToLower(f[inSubject]), "cn="); ok && names == "" {
		names, _, _ = strings.Cut(cn, ",")
	}
	for name := range strings.SplitSeq(names, "?") {
		if name == host || name == "*."+parent {
			return true
		}
	}
	return false
}
