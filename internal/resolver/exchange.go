package resolver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/miekg/dns"
)

// ask asks one question, that at the end of the answer so far: each server in
// turn, in some rounds, until one has an answer. A server that gave a bad answer
// is not asked again. A silent one is, without EDNS: a firewall may drop queries
// with it. The error is the one that says most.
func (r *Resolver) ask(ctx context.Context, a *Answer, qtype Type) (next *Answer, more bool, _ *Error) {
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
			next, more, err := s.ask(ctx, list.timeout, a, qtype, round == 0)
			if err == nil {
				s.heard()
				// What is true of the whole must be true of each part of the chain.
				next.Authenticated = next.Authenticated && list.trustAD
				next.AfterServFail = next.AfterServFail || servFail && list.trustAD
				return next, more, nil
			}
			err.Server = s.addr.String()
			worst = worse(worst, err)
			if ctx.Err() != nil {
				return nil, false, worst
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
	return nil, false, worst
}

// ask asks one server once: over UDP, over TCP when the answer does not fit, and
// again without EDNS when the server does not know it.
func (s *server) ask(ctx context.Context, timeout time.Duration, a *Answer, qtype Type, edns bool) (next *Answer, more bool, _ *Error) {
	name := dns.Fqdn(a.Name)
	msg, err := s.exchange(ctx, timeout, newQuestion(name, qtype, edns))
	if err == nil && edns && msg.IsEdns0() == nil && (msg.Rcode == dns.RcodeFormatError || msg.Rcode == dns.RcodeNotImplemented) {
		msg, err = s.exchange(ctx, timeout, newQuestion(name, qtype, false)) // RFC 6891, 7
	}
	switch {
	case err != nil:
		return nil, false, &Error{Kind: kindOf(err), Err: err}
	case msg.Rcode == dns.RcodeServerFailure:
		return nil, false, &Error{Kind: KindServFail, Err: extendedError(msg)}
	case msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError:
		return nil, false, &Error{Kind: KindRefused, Err: rcodeError(msg.Rcode)}
	case msg.Rcode == dns.RcodeSuccess && len(msg.Answer) == 0 && !msg.Authoritative && !msg.RecursionAvailable:
		return nil, false, &Error{Kind: KindRefused, Err: errors.New("the server does not resolve for us")}
	}
	next, more, err = a.extend(msg, qtype)
	if err != nil {
		return nil, false, &Error{Kind: KindMalformed, Err: err}
	}
	next.Authenticated = a.Authenticated && msg.AuthenticatedData
	return next, more, nil
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

// exchange sends q to the server and returns its answer. Each of UDP and TCP
// has the time-out for itself.
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
		tooShort := errors.Is(err, dns.ErrShortRead)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("%w: the connection ended early", errMalformed)
		case err != nil && !tooShort:
			return nil, err
		case network == "udp" && len(b) == udpBuffer && answers(b, q): // there may be more, which is lost
			return &dns.Msg{MsgHdr: dns.MsgHdr{Truncated: true}}, nil
		case !tooShort && answers(b, q):
			return unpack(b)
		case network == "tcp":
			return nil, fmt.Errorf("%w: not to our question", errMalformed)
		}
	}
}
