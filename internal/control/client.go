package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// Errors of a Client.
var (
	// ErrNoDaemon: nobody listens on the control socket.
	ErrNoDaemon = errors.New("the daemon is not running")
	// ErrNoAnswer: somebody listens, and does not answer in time. So it is
	// with a daemon that hangs, and where systemd holds the socket of one that
	// cannot start.
	ErrNoAnswer = errors.New("the daemon does not answer")
	// ErrBusy: so many others are asking that one more is not let in: by the
	// kernel, whose queue for the socket is full, or by the daemon itself.
	ErrBusy = errors.New("the daemon takes no more clients")
	// ErrNotAllowed: the socket cannot be opened, or the daemon refuses.
	ErrNotAllowed = errors.New("not allowed")
	// ErrNothingHeld: the daemon holds nothing of the domain.
	ErrNothingHeld = errors.New("nothing is held")
)

const (
	dialTimeout   = 5 * time.Second
	answerTimeout = 30 * time.Second // for an answer to begin
	maxLine       = 4 << 20          // bytes of a line: a policy of 64 KiB in JSON, every byte escaped
)

// A Client asks the daemon at a control socket.
type Client struct {
	path      string
	http      http.Client
	transport *http.Transport
}

// NewClient returns a client of the socket at path. It connects when asked.
func NewClient(path string) *Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", path)
			if err != nil {
				return nil, err
			}
			return &answered{Conn: conn}, nil
		},
		DisableCompression:    true,
		ResponseHeaderTimeout: answerTimeout,
	}
	return &Client{path: path, http: http.Client{Transport: transport}, transport: transport}
}

// errHungUp: the daemon closed the connection without a word.
var errHungUp = errors.New("the daemon hung up")

// answered is a connection that tells a hang-up before the first byte from the
// end of an answer. net/http has an error of its own, without a name, for one
// that it sees before it has written the request.
type answered struct {
	net.Conn
	begun bool // only Read looks at it, and net/http reads from one goroutine
}

func (c *answered) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.begun = c.begun || n > 0
	if errors.Is(err, io.EOF) && !c.begun {
		err = errHungUp
	}
	return n, err
}

// Close drops the connections that are kept.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Health asks what runs.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var h Health
	err := c.get(ctx, "/v1/health", &h)
	return h, err
}

// Stats asks for the numbers, as JSON.
func (c *Client) Stats(ctx context.Context) (json.RawMessage, error) {
	var s json.RawMessage
	err := c.get(ctx, "/v1/stats", &s)
	return s, err
}

// Held asks what is held of a domain; ErrNothingHeld if nothing is. The
// domain is in A-labels, lower case.
func (c *Client) Held(ctx context.Context, domain string) (Held, error) {
	h := Held{Domain: domain}
	err := c.get(ctx, "/v1/cache/"+url.PathEscape(domain), &h)
	return h, err
}

// List calls each with every entry of the cache, in the order of the domains.
// A summary comes without the policies' texts.
func (c *Client) List(ctx context.Context, summary bool, each func(Entry) error) error {
	path := "/v1/cache"
	if summary {
		path += "?summary"
	}
	res, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return readLines(res.Body, each)
}

// Refresh checks and fetches the domains now, at most MaxDomains, and calls
// each with what came of them, as they are done.
func (c *Client) Refresh(ctx context.Context, domains []string, each func(Refreshed) error) error {
	res, err := c.post(ctx, "/v1/refresh", domains)
	if err != nil {
		return err
	}
	return readLines(res.Body, each)
}

// Forget drops the domains from the cache, at most MaxDomains.
func (c *Client) Forget(ctx context.Context, domains []string, each func(Forgotten) error) error {
	res, err := c.post(ctx, "/v1/forget", domains)
	if err != nil {
		return err
	}
	return readLines(res.Body, each)
}

// ForgetFailures drops all remembered failures to find a policy, and returns how
// many they were.
func (c *Client) ForgetFailures(ctx context.Context) (int, error) {
	var f ForgottenFailures
	err := c.decode(ctx, http.MethodPost, "/v1/forget-failures", &f)
	return f.Count, err
}

func (c *Client) get(ctx context.Context, path string, into any) error {
	return c.decode(ctx, http.MethodGet, path, into)
}

// decode asks with no body, and decodes the answer.
func (c *Client) decode(ctx context.Context, method, path string, into any) error {
	res, err := c.do(ctx, method, path, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxLine)).Decode(into); err != nil {
		return fmt.Errorf("the daemon's answer cannot be read: %w", err)
	}
	return nil
}

func (c *Client) post(ctx context.Context, path string, domains []string) (*http.Response, error) {
	body, err := json.Marshal(request{Domains: domains})
	if err != nil {
		return nil, err
	}
	return c.do(ctx, http.MethodPost, path, body)
}

// do asks, and makes errors of answers that are none.
func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w (nothing listens at %s)", ErrNoDaemon, c.path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w to ask the daemon (no permission to open %s)", ErrNotAllowed, c.path)
	case errors.Is(err, syscall.EAGAIN): // of connect(2), and a time-out by its own account
		return nil, fmt.Errorf("%w (the queue of %s is full)", ErrBusy, c.path)
	case errors.Is(err, errHungUp), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return nil, fmt.Errorf("%w (it hung up at %s)", ErrBusy, c.path)
	case err != nil:
		var late net.Error
		if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &late) && late.Timeout() {
			return nil, fmt.Errorf("%w at %s", ErrNoAnswer, c.path)
		}
		return nil, fmt.Errorf("ask the daemon: %w", err)
	case res.StatusCode == http.StatusOK:
		return res, nil
	}
	defer res.Body.Close()
	var f failure
	_ = json.NewDecoder(io.LimitReader(res.Body, maxLine)).Decode(&f) // without words, the status has to do
	switch {
	case res.StatusCode == http.StatusNotFound && f.Err == "":
		return nil, ErrNothingHeld
	case res.StatusCode == http.StatusForbidden:
		return nil, fmt.Errorf("%w: %s", ErrNotAllowed, f.Err)
	case f.Err == "":
		return nil, fmt.Errorf("the daemon answers %s", res.Status)
	}
	return nil, fmt.Errorf("the daemon says: %s", f.Err)
}

// readLines calls each with every line of an answer but the End.
func readLines[T any](body io.ReadCloser, each func(T) error) error {
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var end End
		if err := json.Unmarshal(lines.Bytes(), &end); err != nil {
			return fmt.Errorf("the daemon's answer cannot be read: %w", err)
		}
		if end.End {
			if end.Err != "" {
				return fmt.Errorf("the daemon stopped in the middle: %s", end.Err)
			}
			return nil
		}
		var v T
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			return fmt.Errorf("the daemon's answer cannot be read: %w", err)
		}
		if err := each(v); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("the daemon's answer broke off: %w", err)
	}
	return errors.New("the daemon's answer broke off")
}
