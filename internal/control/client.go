package control

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reporting"
)

// Errors of a Client: what it saw.
var (
	ErrNoDaemon    = errors.New("the daemon is not running")                          // nobody listens
	ErrNoAnswer    = errors.New("the daemon does not answer")                         // in time: it hangs, or systemd holds its socket
	ErrClosed      = errors.New("the daemon closed the connection without an answer") // it crashed, or has MaxClients
	ErrNotAllowed  = errors.New("not allowed")                                        // to open the socket, or to change something
	ErrNothingHeld = errors.New("nothing is held")                                    // for the domain
)

// A NotStartedError is the answer of a daemon that cannot start, and that answers every
// lookup TEMP.
type NotStartedError struct{ Reason string }

func (e *NotStartedError) Error() string { return "the daemon says: it cannot start yet: " + e.Reason }

const (
	answerTimeout = 30 * time.Second // for an answer to begin
	maxLine       = 4 << 20          // bytes of a line: a policy of 64 KiB in JSON, every byte escaped
	partSize      = 1 << 20          // bytes of entries, after which a request is sent
)

// A Client asks the daemon at a control socket.
type Client struct {
	Err  error // that of every call, without asking, if it is set
	path string
	http http.Client
}

// NewClient returns a client of the socket at path. It connects when asked.
func NewClient(path string) *Client {
	return &Client{path: path, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		DisableCompression:    true,
		MaxConnsPerHost:       MaxClients / 4, // one more call waits: the daemon would close its connection
		ResponseHeaderTimeout: answerTimeout,
	}}}
}

// Close drops the connections that are kept.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Health asks what runs.
func (c *Client) Health(ctx context.Context) (Health, error) {
	return ask[Health](ctx, c, http.MethodGet, "/v1/health", nil)
}

// Held asks what is held for a domain in canonical form; ErrNothingHeld if
// nothing is.
func (c *Client) Held(ctx context.Context, domain string) (Held, error) {
	h, err := ask[Held](ctx, c, http.MethodGet, "/v1/cache/"+url.PathEscape(domain), nil)
	if err == nil && h.Nothing() {
		err = ErrNothingHeld
	}
	return h, err
}

// List calls each with every entry of the cache, in the order of the domains.
func (c *Client) List(ctx context.Context, each func(Entry) error) error {
	return stream(ctx, c, http.MethodGet, "/v1/cache", nil, each)
}

// Exemptions calls each with every exemption that is in force.
func (c *Client) Exemptions(ctx context.Context, each func(exempt.Exemption) error) error {
	return stream(ctx, c, http.MethodGet, "/v1/exempt", nil, each)
}

// Rehearsed calls each with what rehearsed maps would have replied.
func (c *Client) Rehearsed(ctx context.Context, each func(tlsmap.Rehearsed) error) error {
	return stream(ctx, c, http.MethodGet, "/v1/rehearsal", nil, each)
}

// TLS calls each with the TLS sessions of all days of a domain, or of all domains if it
// is empty.
func (c *Client) TLS(ctx context.Context, domain string, each func(reporting.View) error) error {
	return stream(ctx, c, http.MethodGet, "/v1/tls?"+url.Values{"domain": {domain}}.Encode(), nil, each)
}

// Destinations returns the TLS sessions with all destinations at a glance.
func (c *Client) Destinations(ctx context.Context) (reporting.Overview, error) {
	return ask[reporting.Overview](ctx, c, http.MethodGet, "/v1/tls/overview", nil)
}

// Report returns the TLS report of a domain's day that was sent, or would be.
func (c *Client) Report(ctx context.Context, domain string, day tlsrpt.Day) (report.Report, error) {
	return ask[report.Report](ctx, c, http.MethodGet, "/v1/report?"+url.Values{"domain": {domain}, "day": {string(day)}}.Encode(), nil)
}

// SendReports delivers the TLS reports of a day now, of one domain or of all if it is
// empty, and calls each with what came of a report.
func (c *Client) SendReports(ctx context.Context, domain string, day tlsrpt.Day, each func(reporting.Sent) error) error {
	return stream(ctx, c, http.MethodPost, "/v1/report?"+url.Values{"domain": {domain}, "day": {string(day)}}.Encode(), nil, each)
}

// Suppress has no TLS reports sent to an address for so long; zero ends that. It returns
// the name under which the daemon keeps the address.
func (c *Client) Suppress(ctx context.Context, address string, long time.Duration) (string, error) {
	return ask[string](ctx, c, http.MethodPost, "/v1/suppress?"+url.Values{"address": {address}, "for": {long.String()}}.Encode(), nil)
}

// Refresh checks and fetches the domains now, and calls each as they are done.
func (c *Client) Refresh(ctx context.Context, domains []string, each func(keeper.Refreshed) error) error {
	return inParts(ctx, c, "/v1/refresh", Named(domains), each)
}

// Forget drops the domains from the cache, and calls each as they are done.
func (c *Client) Forget(ctx context.Context, domains []string, each func(Forgotten) error) error {
	return inParts(ctx, c, "/v1/forget", Named(domains), each)
}

// Learn has entries taken over, or discovered where they have no policy, and
// calls each as they are done.
func (c *Client) Learn(ctx context.Context, entries iter.Seq[Entry], each func(keeper.Learned) error) error {
	return inParts(ctx, c, "/v1/learn", entries, each)
}

// ForgetFailures drops all remembered failures to find a policy, and returns
// their number.
func (c *Client) ForgetFailures(ctx context.Context) (int, error) {
	return ask[int](ctx, c, http.MethodPost, "/v1/forget-failures", nil)
}

// Exempt exempts a domain for so long; zero ends its exemption.
func (c *Client) Exempt(ctx context.Context, domain string, long time.Duration) (Exemption, error) {
	query := url.Values{"domain": {domain}, "for": {long.String()}}
	return ask[Exemption](ctx, c, http.MethodPost, "/v1/exempt?"+query.Encode(), nil)
}

// Fleet asks for the relays that share policies.
func (c *Client) Fleet(ctx context.Context) (Fleet, error) {
	return ask[Fleet](ctx, c, http.MethodGet, "/v1/fleet", nil)
}

// Order has all relays of the fleet do something.
func (c *Client) Order(ctx context.Context, o Order) error {
	query := url.Values{"do": {o.Do}, "domain": {o.Domain}, "for": {o.For.String()}}
	_, err := ask[End](ctx, c, http.MethodPost, "/v1/fleet?"+query.Encode(), nil)
	return err
}

// Named are entries of domains alone.
func Named(domains []string) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for _, d := range domains {
			if !yield(Entry{Domain: d}) {
				return
			}
		}
	}
}

// inParts posts any number of entries in requests of a size that the server
// takes.
func inParts[T any](ctx context.Context, c *Client, path string, entries iter.Seq[Entry], each func(T) error) error {
	var part []byte
	for e := range entries {
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if part = append(part, line...); len(part) < partSize {
			continue
		}
		if err := stream(ctx, c, http.MethodPost, path, part, each); err != nil {
			return err
		}
		part = nil
	}
	if len(part) == 0 {
		return nil
	}
	return stream(ctx, c, http.MethodPost, path, part, each)
}

// ask decodes an answer of one value.
func ask[T any](ctx context.Context, c *Client, method, path string, body []byte) (v T, err error) {
	answer, err := c.do(ctx, method, path, body)
	if err != nil {
		return v, err
	}
	defer answer.Close()
	if err := json.NewDecoder(io.LimitReader(answer, maxLine)).Decode(&v); err != nil {
		return v, fmt.Errorf("the daemon's answer cannot be read: %w", err)
	}
	return v, nil
}

// stream calls each with every line of an answer but the End.
func stream[T any](ctx context.Context, c *Client, method, path string, body []byte, each func(T) error) error {
	answer, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	lines := bufio.NewScanner(answer)
	lines.Buffer(nil, maxLine)
	for failed := "the daemon says"; lines.Scan(); failed = "the daemon stopped in the middle" {
		var end End
		var v T
		if err := errors.Join(json.Unmarshal(lines.Bytes(), &end), json.Unmarshal(lines.Bytes(), &v)); err != nil {
			return fmt.Errorf("the daemon's answer cannot be read: %w", err)
		}
		switch {
		case end.End && end.Err != "":
			return fmt.Errorf("%s: %s", failed, end.Err)
		case end.End:
			return nil
		}
		if err := each(v); err != nil {
			return err
		}
	}
	return fmt.Errorf("the daemon's answer broke off: %w", cmp.Or(lines.Err(), io.ErrUnexpectedEOF))
}

// do sends a request and returns the body of an answer that is no error.
func (c *Client) do(ctx context.Context, method, path string, body []byte) (io.ReadCloser, error) {
	if c.Err != nil {
		return nil, c.Err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	asked := time.Now()
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(err, time.Since(asked))
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer res.Body.Close()
	var f failure
	_ = json.NewDecoder(io.LimitReader(res.Body, maxLine)).Decode(&f) // without words, the status has to do
	switch {
	case f.Err == "":
		return nil, fmt.Errorf("the daemon answers %s", res.Status)
	case res.StatusCode == http.StatusServiceUnavailable:
		return nil, &NotStartedError{f.Err}
	case res.StatusCode == http.StatusForbidden:
		return nil, fmt.Errorf("%w%s", ErrNotAllowed, strings.TrimPrefix(f.Err, ErrNotAllowed.Error()))
	}
	return nil, fmt.Errorf("the daemon says: %s", f.Err)
}

// failed says what was seen of a daemon that gave no answer.
func (c *Client) failed(err error, waited time.Duration) error {
	var timeout net.Error
	var op *net.OpError
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (nothing listens at %s)", ErrNoDaemon, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w to ask the daemon (no permission to open %s)", ErrNotAllowed, c.path)
	case errors.Is(err, syscall.EAGAIN): // of connect(2)
		return fmt.Errorf("%w at %s: connections to it are not accepted", ErrNoAnswer, c.path)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%w at %s in %s", ErrNoAnswer, c.path, waited.Round(time.Second))
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("ask the daemon: %w", err)
	}
	return fmt.Errorf("%w at %s: %w", ErrClosed, c.path, errors.Unwrap(err)) // which names the request, too
}
