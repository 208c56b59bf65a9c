package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/miekg/dns"
)

// ask asks one question: each server in turn, in some rounds, until one has an
// answer. A server that gave a bad answer is not asked again, a silent one is,
// without EDNS: it may stand behind something that drops queries with EDNS.
// The error is the one that says most.
func (r *Resolver) ask(ctx context.Context, name string, qtype uint16) (*step, error) {
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
			st, err := askServer(ctx, s, list.timeout, name, qtype, round == 0)
			if err == nil {
				s.heard()
				st.auth = st.auth && list.trustAD
				st.afterServFail = servFail && list.trustAD
				return st, nil
			}
			err.Server = s.addr.String()
			worst = worse(worst, err)
			if ctx.Err() != nil {
				return nil, worst
			}
			switch err.Kind {
			case KindTimeout, KindUnreachable:
				s.silent(time.Now())
			default:
				s.heard()
				answered[i] = true
				servFail = servFail || err.Kind == KindServFail
			}
		}
	}
	return nil, worst
}

// worse returns the error that says more about the question: what a server
// said before that none did. The newer of equals.
func worse(a, b *Error) *Error {
	weight := func(k Kind) int {
		switch k {
		case KindServFail:
			return 4
		case KindMalformed:
			return 3
		case KindRefused:
			return 2
		case KindTimeout:
			return 1
		}
		return 0
	}
	if a != nil && weight(a.Kind) > weight(b.Kind) {
		return a
	}
	return b
}

// askServer asks one server once: over UDP, and over TCP when the answer did
// not fit; without EDNS when it does not know it.
func askServer(ctx context.Context, s *server, timeout time.Duration, name string, qtype uint16, edns bool) (*step, *Error) {
	msg, err := exchange(ctx, s.addr, timeout, newQuestion(name, qtype, edns))
	if err == nil && edns && msg.IsEdns0() == nil && (msg.Rcode == dns.RcodeFormatError || msg.Rcode == dns.RcodeNotImplemented) {
		msg, err = exchange(ctx, s.addr, timeout, newQuestion(name, qtype, false)) // RFC 6891, 7
	}
	if err != nil {
		return nil, &Error{Kind: kindOf(err), Err: err}
	}
	switch msg.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
	case dns.RcodeServerFailure:
		return nil, &Error{Kind: KindServFail, Err: extendedError(msg)}
	default:
		return nil, &Error{Kind: KindRefused, Err: rcodeError(msg.Rcode)}
	}
	if msg.Rcode == dns.RcodeSuccess && len(msg.Answer) == 0 && !msg.Authoritative && !msg.RecursionAvailable {
		return nil, &Error{Kind: KindRefused, Err: errors.New("the server does not resolve for us")}
	}
	st, err := readStep(msg, name, qtype)
	if err != nil {
		return nil, &Error{Kind: KindMalformed, Err: err}
	}
	st.auth = msg.AuthenticatedData
	return st, nil
}

// newQuestion returns the message that asks for qtype at name. The AD bit asks
// for the AD bit (RFC 6840, 5.7); the signatures themselves (DO) we have no
// use for: the server checks them.
func newQuestion(name string, qtype uint16, edns bool) *dns.Msg {
	m := new(dns.Msg)
	m.Id = dns.Id()
	m.RecursionDesired = true
	m.AuthenticatedData = true
	m.Question = []dns.Question{{Name: name, Qtype: qtype, Qclass: dns.ClassINET}}
	if edns {
		m.SetEdns0(udpSize, false)
	}
	return m
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

// rcodeError names a response code that is no answer.
func rcodeError(rcode int) error {
	if s, ok := dns.RcodeToString[rcode]; ok {
		return errors.New(s)
	}
	return fmt.Errorf("response code %d", rcode)
}

// extendedError names the reason of a failure, if the server gives one that
// has a name (RFC 8914). The text that may come with it is left out: it is
// anyone's.
func extendedError(msg *dns.Msg) error {
	opt := msg.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		if ede, ok := o.(*dns.EDNS0_EDE); ok {
			if s, ok := dns.ExtendedErrorCodeToString[ede.InfoCode]; ok {
				return errors.New(s)
			}
		}
	}
	return nil
}

// exchange sends q to a server and returns its answer. Each of UDP and TCP
// has the time-out for itself.
func exchange(ctx context.Context, server netip.AddrPort, timeout time.Duration, q *dns.Msg) (*dns.Msg, error) {
	wire, err := q.Pack()
	if err != nil {
		return nil, err
	}
	msg, err := over(ctx, "udp", server, timeout, func(c net.Conn) (*dns.Msg, error) { return overUDP(c, q, wire) })
	if err == nil && msg.Truncated {
		msg, err = over(ctx, "tcp", server, timeout, func(c net.Conn) (*dns.Msg, error) { return overTCP(c, q, wire) })
	}
	return msg, err
}

// over runs an exchange on a connection of its own, and so from a port of its
// own, that ends with ctx or after timeout.
func over(ctx context.Context, network string, server netip.AddrPort, timeout time.Duration, exchange func(net.Conn) (*dns.Msg, error)) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return exchange(conn)
}

// overUDP sends the question and waits for its answer. The socket is
// connected, so that only the server's datagrams arrive; those that do not
// repeat the id and the question are somebody's guesses: they are dropped, and
// the wait goes on (RFC 5452, 9.1).
func overUDP(conn net.Conn, q *dns.Msg, wire []byte) (*dns.Msg, error) {
	if _, err := conn.Write(wire); err != nil {
		return nil, err
	}
	buf := make([]byte, udpBuffer)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if !answers(buf[:n], q) {
			continue
		}
		if n == len(buf) { // and perhaps more, which is lost
			return &dns.Msg{MsgHdr: dns.MsgHdr{Truncated: true}}, nil
		}
		return unpack(buf[:n])
	}
}

// overTCP sends the question and reads one answer (RFC 7766).
func overTCP(conn net.Conn, q *dns.Msg, wire []byte) (*dns.Msg, error) {
	frame := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(wire)), uint16(len(wire)))
	if _, err := conn.Write(append(frame, wire...)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, cutShort(err)
	}
	buf := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, cutShort(err)
	}
	if !answers(buf, q) {
		return nil, fmt.Errorf("%w: not to our question", errMalformed)
	}
	msg, err := unpack(buf)
	if err == nil && msg.Truncated {
		return nil, fmt.Errorf("%w: truncated over TCP", errMalformed)
	}
	return msg, err
}

// cutShort turns the end of a stream in the middle of an answer into what it
// is to us.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the connection ended early", errMalformed)
	}
	return err
}

// Places in a message's header (RFC 1035, 4.1.1).
const (
	headerLen   = 12
	offBits     = 2
	offQdcount  = 4
	bitsQR      = 1 << 15
	bitsOpcode  = 0xf << 11
	bitsTC      = 1 << 9
	bitsRcode   = 0xf
	questionLen = 4 // of type and class, after the name
)

// answers says whether b begins as an answer to q does: with its id and its
// question. An error may come without the question.
func answers(b []byte, q *dns.Msg) bool {
	if len(b) < headerLen || binary.BigEndian.Uint16(b) != q.Id {
		return false
	}
	bits := binary.BigEndian.Uint16(b[offBits:])
	if bits&bitsQR == 0 || bits&bitsOpcode != 0 {
		return false
	}
	switch binary.BigEndian.Uint16(b[offQdcount:]) {
	case 0:
		rcode := int(bits & bitsRcode)
		return rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError
	case 1:
	default:
		return false
	}
	name, off, err := dns.UnpackDomainName(b, headerLen)
	if err != nil || len(b) < off+questionLen {
		return false
	}
	want := q.Question[0]
	return dns.CanonicalName(name) == want.Name &&
		binary.BigEndian.Uint16(b[off:]) == want.Qtype &&
		binary.BigEndian.Uint16(b[off+2:]) == want.Qclass
}

// unpack parses an answer. The library is content with fewer records than the
// header counts; we are not, unless the answer says that it is cut.
func unpack(b []byte) (*dns.Msg, error) {
	msg := new(dns.Msg)
	if binary.BigEndian.Uint16(b[offBits:])&bitsTC != 0 {
		msg.Truncated = true // what is there is not looked at
		return msg, nil
	}
	if err := msg.Unpack(b); err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	for i, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		if int(binary.BigEndian.Uint16(b[offQdcount+2+2*i:])) != len(section) {
			return nil, fmt.Errorf("%w: fewer records than announced", errMalformed)
		}
	}
	return msg, nil
}
