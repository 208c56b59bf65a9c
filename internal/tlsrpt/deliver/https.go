package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// The bounds of a POST.
const (
	postTime  = 30 * time.Second // in all
	maxAnswer = 16 << 10         // bytes of the header of the answer; its body is not read
)

// HTTPS returns a Config.Post (RFC 8460, 5.4). Without verify it accepts any certificate.
func HTTPS(client *policy.Client, verify bool, userAgent string) func(ctx context.Context, url string, compressed []byte) error {
	return func(ctx context.Context, url string, compressed []byte) error {
		ctx, cancel := context.WithTimeout(ctx, postTime)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(compressed))
		if err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
		request.Header = http.Header{"User-Agent": {userAgent}, "Content-Type": {report.MediaType}}
		transport := &http.Transport{
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return client.DialTLS(ctx, request.URL.Hostname(), verify)
			},
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxAnswer,
		}
		response, err := transport.RoundTrip(request) // it follows no redirects and sets no cookies
		if err != nil {
			// The words are the policy fetcher's.
			return errors.New(strings.ReplaceAll(err.Error(), "the policy host", "the receiver"))
		}
		response.Body.Close()
		return judge(response)
	}
}

// judge says what an answer means (RFC 8460, 5.4).
func judge(response *http.Response) error {
	code := response.StatusCode
	err := fmt.Errorf("HTTP status %d", code)
	switch {
	case slices.Contains([]int{http.StatusOK, http.StatusCreated, http.StatusAccepted, http.StatusNoContent}, code):
		return nil
	case code/100 == 4 && !slices.Contains([]int{http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests}, code):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	after := response.Header.Get("Retry-After") // RFC 9110, 10.2.3
	if at, bad := http.ParseTime(after); bad == nil {
		return &LaterError{time.Until(at), err}
	}
	if seconds, bad := strconv.ParseUint(after, 10, 32); bad == nil {
		return &LaterError{time.Duration(seconds) * time.Second, err}
	}
	return err
}
