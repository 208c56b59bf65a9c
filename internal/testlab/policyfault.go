package testlab

import (
	"compress/gzip"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// A PolicyFault is a kind of misbehaviour of a policy host. For bad
// certificates see Present, for a closed listener PolicyServer.Down.
type PolicyFault uint8

// Any policy sent is valid, so that only the fault can be the reason for its
// rejection.
const (
	PolicyFine            PolicyFault = iota
	Status404                         // 404 with the policy as the body
	Status500                         // 500 with the policy as the body
	Status204                         // 204
	Status203                         // 203 with the policy as the body
	Redirect                          // 302 to a path of the same host that serves the policy
	HTML                              // the policy with type text/html
	NoContentType                     // the policy without a media type
	Endless                           // an endless body
	EndlessHeader                     // an endless header
	HugeHeader                        // 48 KiB of header before the policy
	Drip                              // an endless body, one byte at a time
	DripHeader                        // an endless header, one byte at a time
	CutBody                           // fewer bytes than Content-Length
	Compressed                        // the policy in gzip, always
	NotHTTP                           // another protocol inside TLS
	StallRequest                      // no answer to the request
	StallBody                         // the header and half the policy, then nothing
	StallHandshake                    // no answer to the ClientHello
	NotTLS                            // another protocol instead of TLS
	ResetHandshake                    // TCP reset at the ClientHello
	HandshakeRefused                  // TLS alert at the ClientHello
	OldTLS                            // TLS 1.1 at most
	ClientCertificateOnly             // requires a client certificate
	TLS12Only                         // TLS 1.2 at most; not a fault
)

const (
	movedPath  = "/policy-has-moved-here.txt" // where Redirect leads
	dripEvery  = 20 * time.Millisecond
	hugeHeader = 48 << 10  // bytes; the limit of the daemon is 16 KiB
	maxEndless = 256 << 20 // bytes; the end of an endless reply
)

// hello handles a ClientHello for the host.
func (h *PolicyHost) hello(info *tls.ClientHelloInfo) (*tls.Config, error) {
	h.mu.Lock()
	h.handshakes++
	f := h.fault
	if h.config == nil {
		h.config = h.newConfig()
	}
	config := h.config
	h.mu.Unlock()
	h.Server.lab.event()
	switch f {
	case StallHandshake:
		io.Copy(io.Discard, info.Conn) // until the client or the lab closes the connection
		return nil, errors.New("stalled")
	case NotTLS:
		io.WriteString(info.Conn, "220 this is no place for TLS\r\n")
		hangUp(info.Conn)
		return nil, errors.New("not TLS")
	case ResetHandshake:
		reset(info.Conn)
		return nil, errors.New("reset")
	case HandshakeRefused:
		return nil, errors.New("refused") // crypto/tls sends internal_error
	}
	return config, nil
}

// newConfig returns the host's TLS configuration; h.mu is held. It is replaced
// at each change, which also replaces the session ticket keys, so that no
// client resumes a session with an old certificate.
func (h *PolicyHost) newConfig() *tls.Config {
	c := &tls.Config{
		Certificates: []tls.Certificate{h.cert},
		MinVersion:   tls.VersionTLS10,
		NextProtos:   []string{"http/1.1"},
	}
	switch h.fault {
	case OldTLS:
		c.MaxVersion = tls.VersionTLS11
	case TLS12Only:
		c.MaxVersion = tls.VersionTLS12
	case ClientCertificateOnly:
		c.ClientAuth = tls.RequireAnyClientCert
	}
	return c
}

// hangUp closes the sending side and then reads to the end, so that a reset
// does not discard what was sent.
func hangUp(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.CloseWrite()
	}
	c.SetReadDeadline(time.Now().Add(hangUpWithin))
	io.Copy(io.Discard, c)
	c.Close()
}

// hangUpWithin limits the wait for a client that does not close.
const hangUpWithin = 2 * time.Second

// reset closes the connection with a TCP RST.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// serveHTTP handles a request for the host.
func (h *PolicyHost) serveHTTP(w http.ResponseWriter, r *http.Request) {
	f, handler, gate := h.note(r)
	if !gate.wait(r.Context().Done()) {
		panic(http.ErrAbortHandler)
	}
	if f == PolicyFine && handler != nil {
		handler.ServeHTTP(w, r)
		return
	}
	h.mu.Lock()
	text, ok := h.text, h.served
	h.mu.Unlock()
	moved := f == Redirect && r.URL.Path == movedPath
	if !ok || r.URL.Path != WellKnown && !moved {
		http.NotFound(w, r)
		return
	}
	if moved {
		f = PolicyFine
	}
	h.answer(w, r, f, text)
}

// answer sends the policy with the fault applied.
func (h *PolicyHost) answer(w http.ResponseWriter, r *http.Request, f PolicyFault, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	status := http.StatusOK
	switch f {
	case Status404:
		status = http.StatusNotFound
	case Status500:
		status = http.StatusInternalServerError
	case Status204:
		w.WriteHeader(http.StatusNoContent)
		return
	case Status203:
		status = http.StatusNonAuthoritativeInfo
	case Redirect:
		w.Header().Set("Location", "https://"+h.Name+movedPath)
		status = http.StatusFound
	case HTML:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
	case NoContentType:
		w.Header()["Content-Type"] = nil // nil: net/http does not guess one
	case Compressed:
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		io.WriteString(z, text)
		z.Close()
		return
	case StallRequest:
		<-r.Context().Done() // until the client or the lab closes the connection
		panic(http.ErrAbortHandler)
	case StallBody, CutBody:
		h.half(w, r, f, text)
		return
	case Endless, Drip:
		h.endless(w, f)
		return
	case HugeHeader, EndlessHeader, DripHeader, NotHTTP:
		h.raw(w, f, text)
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(text)))
	w.WriteHeader(status)
	io.WriteString(w, text)
}

// half sends half the policy.
func (h *PolicyHost) half(w http.ResponseWriter, r *http.Request, f PolicyFault, text string) {
	w.Header().Set("Content-Length", fmt.Sprint(len(text)))
	io.WriteString(w, text[:len(text)/2])
	http.NewResponseController(w).Flush()
	if f == StallBody {
		<-r.Context().Done()
	}
	panic(http.ErrAbortHandler)
}

// endless sends a body until the client closes the connection.
func (h *PolicyHost) endless(w http.ResponseWriter, f PolicyFault) {
	chunk := []byte("version: STSv1\r\n" + strings.Repeat("# and on, and on it goes\r\n", 100))
	if f == Drip {
		chunk = []byte("v")
	}
	flush := http.NewResponseController(w)
	h.pour(f == Drip, func() (int, error) {
		n, err := w.Write(chunk)
		if err == nil {
			err = flush.Flush()
		}
		return n, err
	})
	panic(http.ErrAbortHandler)
}

// pour calls write until it fails, the lab closes or maxEndless is reached.
// With drip it pauses between calls.
func (h *PolicyHost) pour(drip bool, write func() (int, error)) {
	var tick <-chan time.Time
	if drip {
		t := time.NewTicker(dripEvery)
		defer t.Stop()
		tick = t.C
	}
	for sent := 0; sent < maxEndless; {
		n, err := write()
		sent += n
		h.mu.Lock()
		h.sent += int64(n)
		h.mu.Unlock()
		h.Server.lab.event()
		if err != nil {
			return
		}
		if drip {
			select {
			case <-tick:
			case <-h.Server.lab.done:
				return
			}
		}
	}
}

// raw writes to the hijacked connection.
func (h *PolicyHost) raw(w http.ResponseWriter, f PolicyFault, text string) {
	h.Server.open.Add(1)
	defer h.Server.open.Done()
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	stop := h.Server.whenDown(conn)
	defer stop()
	const status = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
	switch f {
	case NotHTTP:
		io.WriteString(conn, "* OK IMAP4rev1 is not what you have come for\r\n")
	case HugeHeader:
		line := "X-Padding: " + strings.Repeat("x", 1000) + "\r\n"
		fmt.Fprintf(conn, "%s%sContent-Length: %d\r\nConnection: close\r\n\r\n%s",
			status, strings.Repeat(line, hugeHeader/len(line)+1), len(text), text)
	case EndlessHeader, DripHeader:
		chunk := []byte(strings.Repeat("X-And-On: and on it goes\r\n", 100))
		if f == DripHeader {
			chunk = []byte("x")
		}
		if _, err := io.WriteString(conn, status); err != nil {
			return
		}
		h.pour(f == DripHeader, func() (int, error) { return conn.Write(chunk) })
	}
}
