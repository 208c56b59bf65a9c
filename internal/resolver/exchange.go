package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// ask asks one question, that at the end of the answer so far: each server in
// turn, in some rounds, until one has an answer. A server that gave a bad answer
// is not asked again. A silent one is, without EDNS: a firewall may drop queries
// with it. The error is the one that says most.
func (r *Resolver) ask(ctx context.Context, a *Answer, qtype Type) (*Answer, *Error) {
	list := r.servers()
	order := list.order(time.Now())
	answered := make([]bool, len(order))
	servFail := false
	var worst *Error
	for round := range list.attempts {
		for i, s := range order {
			if answered[i] {
				continue
			}
			next, err := s.ask(ctx, list.timeout, a, qtype, round == 0)
			if err == nil {
				s.heard()
				// What is true of the whole must be true of each part of the chain.
				next.Authenticated = next.Authenticated && list.trustAD
				next.AfterServFail = next.AfterServFail || servFail && list.trustAD
				return next, nil
			}
			err.Server = s.addr.String()
			worst = worse(worst, err)
			if ctx.Err() != nil {
				return nil, worst
			}
			if err.Kind == KindTimeout || err.Kind == KindUnreachable {
				s.silent(time.Now())
				continue
			}
			s.heard()
			answered[i] = true
			servFail = servFail || err.Kind == KindServFail
		}
	}
	return nil, worst
}

// ask asks one server, and again without EDNS when it does not know that.
func (s *server) ask(ctx context.Context, timeout time.Duration, a *Answer, qtype Type, edns bool) (*Answer, *Error) {
	name := dns.Fqdn(a.Name)
	msg, err := s.exchange(ctx, timeout, newQuestion(name, qtype, edns))
	if err == nil && edns && msg.IsEdns0() == nil && (msg.Rcode == dns.RcodeFormatError || msg.Rcode == dns.RcodeNotImplemented) {
		msg, err = s.exchange(ctx, timeout, newQuestion(name, qtype, false)) // RFC 6891, 7
	}
	switch {
	case err != nil:
		return nil, &Error{Kind: kindOf(err), Err: err}
	case msg.Rcode == dns.RcodeServerFailure:
		return nil, &Error{Kind: KindServFail, Err: extendedError(msg)}
	case msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError:
		return nil, &Error{Kind: KindRefused, Err: fmt.Errorf("%s (response code %d)", dns.RcodeToString[msg.Rcode], msg.Rcode)}
	case msg.Rcode == dns.RcodeSuccess && len(msg.Answer) == 0 && !msg.Authoritative && !msg.RecursionAvailable:
		return nil, &Error{Kind: KindRefused, Err: errors.New("the server does not resolve for us")}
	}
	next, err := a.extend(msg, qtype)
	if err != nil {
		return nil, &Error{Kind: KindMalformed, Err: err}
	}
	next.Authenticated = a.Authenticated && msg.AuthenticatedData
	return next, nil
}

// errMalformed is an answer that is no DNS message, or contradicts itself.
var errMalformed = errors.New("malformed answer")

// kindOf says in which way an exchange failed.
func kindOf(err error) Kind {
	var ne net.Error
	switch {
	case errors.Is(err, errMalformed):
		return KindMalformed
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &ne) && ne.Timeout():
		return KindTimeout
	}
	return KindUnreachable
}

// exchange sends q over UDP, and over TCP when the answer is truncated.
func (s *server) exchange(ctx context.Context, timeout time.Duration, q *dns.Msg) (*dns.Msg, error) {
	msg, err := s.over(ctx, "udp", timeout, q)
	if err != nil || !msg.Truncated {
		return msg, err
	}
	msg, err = s.over(ctx, "tcp", timeout, q)
	switch {
	case err != nil && kindOf(err) == KindUnreachable: // and yet it was reached
		return nil, fmt.Errorf("%w: truncated, and not to be had over TCP: %w", errMalformed, err)
	case err == nil && msg.Truncated:
		return nil, fmt.Errorf("%w: truncated over TCP", errMalformed)
	}
	return msg, err
}

// over makes an exchange on a connection of its own, and so from a port of its
// own, that ends with ctx or after timeout. Datagrams that do not repeat the id
// and the question may be forged: they are dropped (RFC 5452, 9.1).
func (s *server) over(ctx context.Context, network string, timeout time.Duration, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, s.addr.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	framed := &dns.Conn{Conn: conn, UDPSize: udpBuffer}
	if err := framed.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		b, err := framed.ReadMsgHeader(nil)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("%w: the connection ended early", errMalformed)
		case err != nil && !errors.Is(err, dns.ErrShortRead):
			return nil, err
		}
		msg, ours, err := parse(b, q)
		switch {
		case ours && network == "udp" && len(b) == udpBuffer: // there may be more, which is lost
			return &dns.Msg{MsgHdr: dns.MsgHdr{Truncated: true}}, nil
		case ours:
			return msg, err
		case network == "tcp":
			return nil, fmt.Errorf("%w: not to our question", errMalformed)
		}
	}
}

// newQuestion returns a question. Its AD bit asks for the AD bit (RFC 6840, 5.7).
func newQuestion(name string, qtype Type, edns bool) *dns.Msg {
	m := new(dns.Msg)
	m.Id = dns.Id()
	m.RecursionDesired = true
	m.AuthenticatedData = true
	m.Question = []dns.Question{{Name: name, Qtype: uint16(qtype), Qclass: dns.ClassINET}}
	if edns {
		m.SetEdns0(udpSize, false)
	}
	return m
}

// The counts of records, at the end of a message's header (RFC 1035, 4.1.1).
const (
	offCounts = 6
	headerLen = 12
)

// parse reads an answer to q. It is not ours if it does not repeat the id and the
// question; an error may come without the question.
func parse(b []byte, q *dns.Msg) (msg *dns.Msg, ours bool, _ error) {
	if len(b) < headerLen {
		return nil, false, nil
	}
	begin := slices.Clone(b[:min(len(b), headerLen+maxName+4)])
	clear(begin[offCounts:headerLen])
	msg = new(dns.Msg)
	if msg.Unpack(begin) != nil || msg.Id != q.Id || !msg.Response || msg.Opcode != dns.OpcodeQuery {
		return nil, false, nil
	}
	if len(msg.Question) == 0 {
		ours = msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError
	} else {
		got, want := msg.Question[0], q.Question[0]
		got.Name = dns.CanonicalName(got.Name)
		ours = len(msg.Question) == 1 && got == want
	}
	if !ours || msg.Truncated { // what is there of the records does not matter
		return msg, ours, nil
	}
	if err := msg.Unpack(b); err != nil {
		return nil, true, fmt.Errorf("%w: %w", errMalformed, err)
	}
	for i, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} { // the library is content with fewer records
		if int(binary.BigEndian.Uint16(b[offCounts+2*i:])) != len(section) {
			return nil, true, fmt.Errorf("%w: fewer records than announced", errMalformed)
		}
	}
	return msg, true, nil
}

// extend returns a with what msg says about its name. Only records of the name
// itself, or of one that its CNAMEs lead to, count.
func (a Answer) extend(msg *dns.Msg, qtype Type) (*Answer, error) {
	a.CNAMEs, a.more = slices.Clip(a.CNAMEs), false
	begin := len(a.CNAMEs)
	var records []dns.RR
	for {
		var cname *dns.CNAME
		var err error
		records, cname, err = at(msg.Answer, dns.Fqdn(a.Name), uint16(qtype))
		if err != nil {
			return nil, err
		}
		if len(records) > 0 || cname == nil {
			break
		}
		a.TTL = min(a.TTL, ttlOf(cname))
		a.CNAMEs = append(a.CNAMEs, a.Name)
		a.Name = trimDot(dns.CanonicalName(cname.Target))
		if slices.Contains(a.CNAMEs, a.Name) {
			return nil, fmt.Errorf("CNAME loop at %s", a.Name)
		}
		if len(a.CNAMEs) > maxCNAMEs {
			return nil, fmt.Errorf("more than %d CNAMEs", maxCNAMEs)
		}
	}
	a.NXDomain = msg.Rcode == dns.RcodeNameError
	soa := denial(msg.Ns, dns.Fqdn(a.Name))
	switch {
	case len(records) > 0 && a.NXDomain:
		return nil, errors.New("NXDOMAIN with an answer")
	case len(records) > 0:
		for _, rr := range records {
			a.TTL = min(a.TTL, ttlOf(rr))
		}
		a.setRecords(records)
	case soa != nil: // RFC 2308, 5: the lesser of the SOA's TTL and its minimum field.
		a.TTL = min(a.TTL, ttlOf(soa), ttl(soa.Minttl))
	case !a.NXDomain && len(a.CNAMEs) > begin:
		a.more = true
	default:
		a.TTL = 0
	}
	return &a, nil
}

// at returns the records of type qtype at name, and the CNAME there. The error is
// that of a record that is cut short, or of two different CNAMEs.
func at(rrs []dns.RR, name string, qtype uint16) (records []dns.RR, cname *dns.CNAME, err error) {
	for _, rr := range rrs {
		h := rr.Header()
		if h.Class != dns.ClassINET || (h.Rrtype != qtype && h.Rrtype != dns.TypeCNAME) || dns.CanonicalName(h.Name) != name {
			continue
		}
		if !complete(h) {
			return nil, nil, fmt.Errorf("%s record cut short", Type(h.Rrtype))
		}
		if h.Rrtype == qtype {
			records = append(records, rr)
			continue
		}
		c, ok := rr.(*dns.CNAME)
		if !ok {
			continue
		}
		if cname != nil && !strings.EqualFold(cname.Target, c.Target) {
			return nil, nil, fmt.Errorf("two CNAMEs at %s", trimDot(name))
		}
		cname = c
	}
	return records, cname, nil
}

// complete says whether a record has all its fields. The library takes one that ends
// between two: an MX record without a host would look much like a null MX.
func complete(h *dns.RR_Header) bool {
	least := map[uint16]uint16{dns.TypeA: 4, dns.TypeAAAA: 16, dns.TypeMX: 3, dns.TypeTLSA: 3, dns.TypeSOA: 22}[h.Rrtype]
	return h.Rdlength >= max(least, 1)
}

// denial returns the SOA record that comes with a denial of name (RFC 2308, 2).
func denial(rrs []dns.RR, name string) *dns.SOA {
	for _, rr := range rrs {
		soa, ok := rr.(*dns.SOA)
		if ok && soa.Hdr.Class == dns.ClassINET && complete(&soa.Hdr) && dns.IsSubDomain(soa.Hdr.Name, name) {
			return soa
		}
	}
	return nil
}

// ttlOf returns how long rr may be kept.
func ttlOf(rr dns.RR) time.Duration { return ttl(rr.Header().Ttl) }

// ttl returns a TTL of the wire as a duration within our bounds.
func ttl(seconds uint32) time.Duration {
	if seconds > 1<<31-1 {
		return 0 // RFC 2181, 8
	}
	return min(time.Duration(seconds)*time.Second, maxTTL)
}

// extendedError names the reason of a failure (RFC 8914), without the server's text.
func extendedError(msg *dns.Msg) error {
	if opt := msg.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok && dns.ExtendedErrorCodeToString[ede.InfoCode] != "" {
				return errors.New(dns.ExtendedErrorCodeToString[ede.InfoCode])
			}
		}
	}
	return nil
}
