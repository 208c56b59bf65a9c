package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// An Outcome is how a host did by one measure.
type Outcome struct {
	State  State             `json:"state"`
	Result tlsrpt.ResultType `json:"result,omitempty"` // of RFC 8460, 4.3, where it has one
	Reason string            `json:"reason,omitempty"`
}

func passes(reason string) Outcome  { return Outcome{State: Passes, Reason: reason} }
func unknown(reason string) Outcome { return Outcome{State: Unknown, Reason: reason} }

func fails(result tlsrpt.ResultType, format string, args ...any) Outcome {
	return Outcome{State: Fails, Result: result, Reason: fmt.Sprintf(format, args...)}
}

// A session is what was seen at one address.
type session struct {
	addr  netip.Addr
	reach Outcome // a greeting, and a reply to EHLO
	tls   Outcome // STARTTLS and the handshake

	version uint16              // of TLS
	chain   []*x509.Certificate // as sent, at most maxChain
}

// errReply is a reply that no SMTP server gives.
var errReply = errors.New("not a reply of SMTP")

// talk has a session with an address. serverName is sent as SNI (RFC 8461, 7.1; RFC 7672, 8.1).
func (p *Prober) talk(ctx context.Context, addr netip.AddrPort, serverName string) (s session) {
	s.addr = addr.Addr()
	dialling, cancel := context.WithTimeout(ctx, connectTime)
	conn, err := p.Dial(dialling, "tcp", addr.String())
	cancel()
	if err != nil {
		s.reach = lost(ctx, "", "no connection", err)
		s.tls = s.reach
		return s
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	d := &dialogue{conn: conn, in: bufio.NewReaderSize(conn, maxLine)}
	if s.reach, s.tls = hello(ctx, d, p.EHLO); s.reach.State != Passes {
		s.tls = s.reach
		return s
	}
	if s.tls.State == Passes {
		s.tls = s.startTLS(ctx, d, serverName)
	}
	if d.conn == nil {
		return s // in the middle of a handshake, QUIT is garbage
	}
	d.conn.SetDeadline(time.Now().Add(quitTime))
	d.ask("QUIT")
	return s
}

// hello reads the greeting and says EHLO. It tells whether the host takes mail, and
// whether it offers STARTTLS.
func hello(ctx context.Context, d *dialogue, name string) (reach, offer Outcome) {
	code, lines, err := d.read()
	if err != nil {
		return lost(ctx, "", "no greeting", err), offer
	}
	if code != 220 {
		return fails("", "it greets with %s", refusal(code, lines)), offer
	}
	if code, lines, err = d.ask("EHLO " + name); err != nil {
		return lost(ctx, "", "no reply to EHLO", err), offer
	}
	refused := fails("", "it replies to EHLO with %s", refusal(code, lines)) // perhaps for our name: no Result
	if code/100 == 5 {
		return passes(""), refused // RFC 5321, 3.2: then HELO; such a host has no STARTTLS
	}
	if code != 250 {
		return refused, offer
	}
	for _, l := range lines[1:] {
		if keyword, _, _ := strings.Cut(l, " "); strings.EqualFold(keyword, "STARTTLS") {
			return passes(""), passes("")
		}
	}
	return passes(""), fails(tlsrpt.StartTLSNotSupported, "it does not offer STARTTLS")
}

// startTLS does STARTTLS (RFC 3207). The certificates are judged later.
func (s *session) startTLS(ctx context.Context, d *dialogue, serverName string) Outcome {
	code, lines, err := d.ask("STARTTLS")
	if err != nil {
		d.conn = nil
		return lost(ctx, tlsrpt.ValidationFailure, "no reply to STARTTLS", err)
	}
	if code != 220 {
		return fails(tlsrpt.StartTLSNotSupported, "it replies to STARTTLS with %s", refusal(code, lines))
	}
	raw := d.conn
	d.conn = nil
	if d.in.Buffered() > 0 { // anybody on the way can put it there
		return fails(tlsrpt.ValidationFailure, "it sends data in clear after its reply to STARTTLS")
	}
	conn := tls.Client(raw, &tls.Config{
		ServerName:         serverName,
		MinVersion:         tls.VersionTLS12, // as Debian's OpenSSL and GnuTLS
		CipherSuites:       suites,
		InsecureSkipVerify: true, // judged later, by the policy and by DANE
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		if strings.Contains(err.Error(), "failed to parse certificate") {
			return unknown("only this program cannot read its certificate: " + printable(err))
		}
		return lost(ctx, tlsrpt.ValidationFailure, "the TLS handshake fails", err)
	}
	state := conn.ConnectionState()
	s.version, s.chain = state.Version, state.PeerCertificates[:min(len(state.PeerCertificates), maxChain)]
	d.conn, d.in = conn, bufio.NewReaderSize(conn, maxLine)
	if n := len(s.chain[0].Raw); n > maxCert {
		s.chain = nil
		return fails(tlsrpt.ValidationFailure, "its certificate is of %d bytes", n)
	}
	return passes("")
}

// suites are those of crypto/tls that MTAs accept by default: with RSA key exchange too.
var suites = func() (ids []uint16) {
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		if !strings.Contains(s.Name, "RC4") && !strings.Contains(s.Name, "3DES") {
			ids = append(ids, s.ID)
		}
	}
	return ids
}()

// lost is the Outcome of a connection that failed while it waited for something. The
// result is empty before STARTTLS.
func lost(ctx context.Context, result tlsrpt.ResultType, what string, err error) Outcome {
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
	switch {
	case ctx.Err() != nil, is(os.ErrDeadlineExceeded, context.DeadlineExceeded, syscall.ETIMEDOUT):
		return unknown(what + ": no answer in time")
	case result == "" && !is(errReply, io.EOF, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE):
		return unknown(what + ": " + printable(err)) // no route, no descriptors
	}
	return fails(result, "%s: %s", what, printable(err))
}

func printable(err error) string { return text.Printable(text.Cut(err.Error(), 200)) }

// refusal is a reply in one line, for people.
func refusal(code int, lines []string) string {
	return text.Printable(text.Cut(fmt.Sprintf("%d %s", code, strings.Join(lines, " ")), 200))
}

// A dialogue is SMTP in clear or within TLS. The connection has a deadline.
type dialogue struct {
	conn net.Conn
	in   *bufio.Reader
}

// ask sends a command and reads the reply.
func (d *dialogue) ask(command string) (code int, lines []string, err error) {
	if _, err := d.conn.Write([]byte(command + "\r\n")); err != nil {
		return 0, nil, err
	}
	return d.read()
}

// read reads a reply (RFC 5321, 4.2): its code and the texts of its lines.
func (d *dialogue) read() (code int, lines []string, err error) {
	for len(lines) < maxLines {
		b, err := d.in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return 0, nil, fmt.Errorf("%w: a line of more than %d bytes", errReply, maxLine)
		case err != nil:
			return 0, nil, err
		}
		line := strings.TrimRight(string(b), "\r\n")
		n, err := strconv.Atoi(line[:min(len(line), 3)])
		if err != nil || n < 200 || n > 599 || len(line) > 3 && line[3] != ' ' && line[3] != '-' || code != 0 && n != code {
			return 0, nil, fmt.Errorf("%w: %q", errReply, text.Cut(line, 60))
		}
		code, lines = n, append(lines, line[min(len(line), 4):])
		if len(line) < 4 || line[3] == ' ' {
			return code, lines, nil
		}
	}
	return 0, nil, fmt.Errorf("%w: more than %d lines", errReply, maxLines)
}
