package policy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// MaxHeader bounds the header of an answer, in bytes, 1xx answers included.
const MaxHeader = 16 << 10

// get asks for the policy file on an open session and returns its text.
func (c *Client) get(ctx context.Context, s *session, domain string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, URL(domain), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHTTP, printable{err})
	}
	request.Header = http.Header{
		"User-Agent":    {c.config.UserAgent},
		"Accept":        {"text/plain"},
		"Cache-Control": {"no-cache"}, // RFC 8461, 3.3: HTTP caches are not used
	}
	transport := &http.Transport{
		DialTLSContext:         func(context.Context, string, string) (net.Conn, error) { return s, nil },
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: MaxHeader,
	}
	// RFC 8461, 3.3: RoundTrip follows no redirects. It sets no cookies.
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, failed(ctx, ErrHTTP, "waiting for the answer of "+s.addr.String(), err)
	}
	defer response.Body.Close()
	if err := acceptable(response); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, MaxText+1))
	switch {
	case len(text) > MaxText:
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, MaxText)
	case err != nil:
		return nil, failed(ctx, ErrHTTP, fmt.Sprintf("reading the policy, after %d bytes", len(text)), err)
	}
	return text, nil
}

// acceptable judges an answer by its header.
func acceptable(response *http.Response) error {
	// RFC 8461, 3.3: only 200 counts.
	if response.StatusCode != http.StatusOK {
		e := &StatusError{Code: response.StatusCode}
		if location := response.Header.Get("Location"); location != "" {
			e.Location = quote(location)
		}
		return e
	}
	// RFC 8461, 3.2: parameters are ignored, so broken ones are too.
	contentType := response.Header.Get("Content-Type")
	media, _, _ := strings.Cut(contentType, ";")
	switch {
	case contentType == "":
		return fmt.Errorf("%w: it has no Content-Type", ErrMediaType)
	case hostname.Lower(strings.Trim(media, " \t")) != "text/plain":
		return fmt.Errorf("%w: its Content-Type is %s", ErrMediaType, quote(contentType))
	}
	for _, encoding := range response.Header.Values("Content-Encoding") {
		if encoding = strings.TrimSpace(encoding); encoding != "" && hostname.Lower(encoding) != "identity" {
			return fmt.Errorf("%w: it is encoded as %s, which was not asked for", ErrHTTP, quote(encoding))
		}
	}
	return nil
}
