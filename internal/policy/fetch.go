package policy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// The bounds of a policy host's answer, beside MaxText.
const (
	MaxHeader        = 16 << 10 // bytes of status line and header, 1xx answers included
	maxBodyOnWire    = 4 * MaxText
	maxInformational = 5 // 1xx answers before the real one
)

// get asks for the policy file and returns its text. The context ends it.
//
// It speaks HTTP with net/http's reader and writer rather than its Transport:
// one request on one connection, which belongs to this fetch with its gate, its
// deadline and its errors, needs no pool, no redirects, no cookies, no
// compression and no cache (RFC 8461, 3.3), and leaves no goroutine behind.
func (c *Client) get(ctx context.Context, s *session, domain string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, URL(domain), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrHTTP, words(err))
	}
	request.Close = true
	request.Header = http.Header{
		"User-Agent":    {c.userAgent},
		"Accept":        {"text/plain"},
		"Cache-Control": {"no-cache"}, // RFC 8461, 3.3: HTTP caches are not used
	}
	defer bind(ctx, s.wire)()
	if err := request.Write(s.tls); err != nil {
		return nil, failed(ctx, ErrHTTP, "sending the request to "+s.addr.String(), err)
	}
	limited := &io.LimitedReader{R: s.tls, N: MaxHeader}
	response, err := readResponse(bufio.NewReader(limited), request)
	switch {
	case err != nil && limited.N <= 0:
		return nil, fmt.Errorf("%w: its header has more than %d bytes", ErrTooLarge, MaxHeader)
	case err != nil:
		return nil, failed(ctx, ErrHTTP, "waiting for the answer of "+s.addr.String(), err)
	}
	if err := acceptable(response); err != nil {
		return nil, err
	}
	limited.N = maxBodyOnWire
	text, err := io.ReadAll(io.LimitReader(response.Body, MaxText+1))
	switch {
	case len(text) > MaxText, err != nil && limited.N <= 0:
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, MaxText)
	case err != nil:
		return nil, failed(ctx, ErrHTTP, fmt.Sprintf("reading the policy, after %d bytes", len(text)), err)
	case response.ContentLength < 0 && len(response.TransferEncoding) == 0 && s.wire.eof:
		// The end of the connection is the end of the text, and it did not
		// come from within TLS: anyone on the way can have cut the text.
		return nil, fmt.Errorf("%w: the connection ended after %d bytes without saying so within TLS", ErrHTTP, len(text))
	}
	return text, nil
}

// readResponse reads the final answer's header.
func readResponse(reader *bufio.Reader, request *http.Request) (*http.Response, error) {
	for range maxInformational + 1 {
		response, err := http.ReadResponse(reader, request)
		if err != nil || response.StatusCode/100 != 1 || response.StatusCode == http.StatusSwitchingProtocols {
			return response, err
		}
	}
	return nil, errors.New("too many provisional answers")
}

// acceptable judges an answer by its header.
func acceptable(response *http.Response) error {
	// RFC 8461, 3.3: only 200 counts, and redirects are not followed.
	if response.StatusCode != http.StatusOK {
		e := &StatusError{Code: response.StatusCode}
		if location := response.Header.Get("Location"); location != "" {
			e.Location = quote(location)
		}
		return e
	}
	// RFC 8461, 3.2: parameters, even broken ones, are ignored.
	contentType := response.Header.Get("Content-Type")
	media, _, _ := strings.Cut(contentType, ";")
	switch {
	case contentType == "":
		return fmt.Errorf("%w: it has no Content-Type", ErrMediaType)
	case !equalFold(strings.Trim(media, " \t"), "text/plain"):
		return fmt.Errorf("%w: its Content-Type is %s", ErrMediaType, quote(contentType))
	}
	for _, encoding := range response.Header.Values("Content-Encoding") {
		if encoding = strings.TrimSpace(encoding); encoding != "" && !equalFold(encoding, "identity") {
			return fmt.Errorf("%w: it is encoded as %s, which was not asked for", ErrHTTP, quote(encoding))
		}
	}
	return nil
}

// handshakeError tells the ways apart in which a handshake fails (RFC 8461,
// 3.3): the certificate's name, its dates, who signed it, or something else.
func handshakeError(ctx context.Context, host string, addr netip.Addr, err error) error {
	var verification *tls.CertificateVerificationError
	if !errors.As(err, &verification) {
		return failed(ctx, ErrTLS, "TLS with "+addr.String(), err)
	}
	var wrongName x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &wrongName):
		return fmt.Errorf("%w: at %s it is for %s, not for %s", ErrCertName, addr, names(wrongName.Certificate), host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		return fmt.Errorf("%w: at %s it is valid from %s to %s", ErrCertExpired, addr,
			invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return fmt.Errorf("%w: at %s: %s", ErrCertUntrusted, addr, words(err))
}

// names lists the first few names a certificate is for.
func names(cert *x509.Certificate) string {
	const most = 3
	if cert == nil || len(cert.DNSNames) == 0 {
		return "no DNS name"
	}
	var list []string
	for i, name := range cert.DNSNames {
		if i == most {
			return fmt.Sprintf("%s and %d more", strings.Join(list, ", "), len(cert.DNSNames)-most)
		}
		list = append(list, quote(name))
	}
	return strings.Join(list, ", ")
}
