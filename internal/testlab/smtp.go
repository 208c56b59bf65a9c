package testlab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// A smtpSession is the server side of one SMTP connection (RFC 5321).
type smtpSession struct {
	host  *MailHost
	fault MailFault
	conn  net.Conn
	in    *bufio.Reader
	seen  Session
	mail  Message // the current message
	began bool    // MAIL was accepted
}

var (
	errQuit      = errors.New("QUIT")
	errSMTPLine  = errors.New("line too long")
	errHangingUp = errors.New("closed by the host")
)

// session serves one connection.
func (m *MailHost) session(c net.Conn) {
	m.mu.Lock()
	s := &smtpSession{host: m, fault: m.fault, conn: c, in: bufio.NewReaderSize(c, maxSMTPLine)}
	gate, gone := m.gate, m.gone
	m.mu.Unlock()
	m.lab.event()
	err := errHangingUp
	if s.fault == GreetingStall {
		io.Copy(io.Discard, c) // until the client or the lab closes the connection
	} else if gate.wait(gone) {
		err = s.run()
	}
	if err != errQuit {
		s.seen.Err = err.Error()
	}
	m.leave(c, s.seen)
}

func (s *smtpSession) run() error {
	if s.fault == GreetingRefused {
		s.reply("421 %s is closed today", s.host.Name)
		return errHangingUp
	}
	if err := s.reply("220 %s ESMTP", s.host.Name); err != nil {
		return err
	}
	for {
		line, err := s.line()
		if err != nil {
			return err
		}
		verb, arg, _ := strings.Cut(line, " ")
		if err := s.command(strings.ToUpper(verb), strings.TrimSpace(arg)); err != nil {
			return err
		}
	}
}

// line reads a line without its line end.
func (s *smtpSession) line() (string, error) {
	s.conn.SetReadDeadline(time.Now().Add(smtpIdle))
	b, err := s.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", errSMTPLine
	}
	return strings.TrimRight(string(b), "\r\n"), err
}

func (s *smtpSession) reply(format string, args ...any) error {
	s.conn.SetWriteDeadline(time.Now().Add(smtpIdle))
	_, err := fmt.Fprintf(s.conn, format+"\r\n", args...)
	return err
}

// smtpVerbs are the supported commands.
var smtpVerbs = []string{"EHLO", "HELO", "STARTTLS", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT"}

func (s *smtpSession) command(verb, arg string) error {
	s.host.note(verb)
	switch verb {
	case "EHLO", "HELO":
		return s.hello(verb, arg)
	case "STARTTLS":
		return s.startTLS()
	case "MAIL":
		return s.from(arg)
	case "RCPT":
		return s.rcpt(arg)
	case "DATA":
		return s.data()
	case "RSET":
		s.reset()
		return s.reply("250 2.0.0 reset")
	case "NOOP":
		return s.reply("250 2.0.0 nothing done")
	case "QUIT":
		s.reply("221 2.0.0 goodbye")
		return errQuit
	}
	return s.reply("502 5.5.1 unknown command")
}

// reset discards the current message.
func (s *smtpSession) reset() { s.mail, s.began = Message{}, false }

func (s *smtpSession) hello(verb, name string) error {
	s.seen.Helo = name
	s.reset()
	if verb == "HELO" {
		return s.reply("250 %s", s.host.Name)
	}
	keywords := []string{s.host.Name, "PIPELINING", "8BITMIME", "SMTPUTF8", fmt.Sprintf("SIZE %d", maxMessage)}
	if s.fault != NoSTARTTLS && !s.seen.TLS {
		keywords = append(keywords, "STARTTLS")
	}
	last := len(keywords) - 1
	var b strings.Builder
	for _, k := range keywords[:last] {
		b.WriteString("250-" + k + "\r\n")
	}
	return s.reply("%s250 %s", b.String(), keywords[last])
}

// startTLS handles STARTTLS (RFC 3207). It discards data received before the
// handshake, which was not protected.
func (s *smtpSession) startTLS() error {
	switch {
	case s.fault == NoSTARTTLS || s.seen.TLS:
		return s.reply("502 5.5.1 unknown command")
	case s.fault == STARTTLSRefused:
		s.seen.STARTTLS = true
		return s.reply("454 4.7.0 TLS not available due to temporary reason")
	}
	s.seen.STARTTLS = true
	if err := s.reply("220 2.0.0 ready to start TLS"); err != nil {
		return err
	}
	switch s.fault {
	case STARTTLSGarbage:
		s.in.Peek(1) // wait for the ClientHello, so that the text is not read as a reply
		s.reply("250 this is no TLS")
		hangUp(s.conn)
		return errHangingUp
	case STARTTLSHangUp:
		return errHangingUp
	case STARTTLSStall:
		io.Copy(io.Discard, s.conn)
		return errHangingUp
	}
	return s.handshake()
}

func (s *smtpSession) handshake() error {
	config := &tls.Config{
		Certificates: []tls.Certificate{lockedGet(&s.host.mu, &s.host.cert)},
		MinVersion:   tls.VersionTLS10,
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			s.seen.SNI = info.ServerName
			return nil, nil
		},
	}
	if s.fault == MailOldTLS {
		config.MaxVersion = tls.VersionTLS11
	}
	if key := lockedGet(&s.host.mu, &s.host.tickets); key != nil {
		config.SetSessionTicketKeys([][32]byte{*key})
	}
	conn := tls.Server(s.conn, config)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	s.conn.SetDeadline(time.Time{})
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	state := conn.ConnectionState()
	s.seen.TLS, s.seen.TLSVersion, s.seen.Resumed = true, state.Version, state.DidResume
	s.conn, s.in = conn, bufio.NewReaderSize(conn, maxSMTPLine)
	s.seen.Helo = ""
	s.reset()
	return nil
}

// path returns the address in "FROM:<address> PARAMETERS".
func path(arg, keyword string) (string, bool) {
	if len(arg) < len(keyword) || !strings.EqualFold(arg[:len(keyword)], keyword) {
		return "", false
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(arg[len(keyword):]), "<")
	if !ok {
		return "", false
	}
	addr, _, ok := strings.Cut(rest, ">")
	return addr, ok
}

func (s *smtpSession) from(arg string) error {
	addr, ok := path(arg, "FROM:")
	switch {
	case s.fault == MailDeferred:
		return s.reply("451 4.3.0 come back later")
	case s.seen.Helo == "" || s.began:
		return s.reply("503 5.5.1 bad sequence of commands")
	case !ok:
		return s.reply("501 5.5.4 syntax: MAIL FROM:<address>")
	}
	s.began, s.mail.From = true, addr
	return s.reply("250 2.1.0 sender ok")
}

func (s *smtpSession) rcpt(arg string) error {
	addr, ok := path(arg, "TO:")
	if len(s.seen.Rcpt) < maxRcpt {
		s.seen.Rcpt = append(s.seen.Rcpt, addr)
	}
	switch {
	case !s.began:
		return s.reply("503 5.5.1 bad sequence of commands")
	case !ok || addr == "":
		return s.reply("501 5.5.4 syntax: RCPT TO:<address>")
	case s.fault == RcptRejected:
		return s.reply("550 5.1.1 nobody of that name")
	case len(s.mail.To) == maxRcpt:
		return s.reply("452 4.5.3 too many recipients")
	}
	s.mail.To = append(s.mail.To, addr)
	return s.reply("250 2.1.5 recipient ok")
}

func (s *smtpSession) data() error {
	if len(s.mail.To) == 0 {
		return s.reply("503 5.5.1 bad sequence of commands")
	}
	if err := s.reply("354 go ahead"); err != nil {
		return err
	}
	text, err := s.readData()
	if err != nil {
		return err
	}
	defer s.reset()
	if len(text) > maxMessage {
		return s.reply("552 5.3.4 too large")
	}
	s.mail.Helo, s.mail.Data = s.seen.Helo, text
	s.mail.TLS, s.mail.SNI, s.mail.TLSVersion = s.seen.TLS, s.seen.SNI, s.seen.TLSVersion
	if !s.seen.TLS {
		s.mail.SNI = ""
	}
	s.seen.Messages++
	s.host.accept(s.mail)
	return s.reply("250 2.0.0 accepted")
}

// readData reads a message up to the line with a dot. Of a message that is too
// large it keeps just enough to detect that.
func (s *smtpSession) readData() ([]byte, error) {
	var text []byte
	midLine := false
	for {
		s.conn.SetReadDeadline(time.Now().Add(smtpIdle))
		part, err := s.in.ReadSlice('\n')
		full := errors.Is(err, bufio.ErrBufferFull) // the line continues in the next part
		if err != nil && !full {
			return nil, err
		}
		if !midLine {
			if string(bytes.TrimRight(part, "\r\n")) == "." && !full {
				return text, nil
			}
			part = bytes.TrimPrefix(part, []byte("."))
		}
		midLine = full
		if len(text) <= maxMessage {
			text = append(text, part...)
		}
	}
}

// accept records a message.
func (m *MailHost) accept(msg Message) {
	msg.To = slices.Clone(msg.To)
	m.mu.Lock()
	m.messages = appendBounded(m.messages, msg, maxMessages)
	m.mu.Unlock()
	m.lab.event()
}
