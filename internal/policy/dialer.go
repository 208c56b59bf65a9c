package policy

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
)

// A Dialer connects to other HTTPS hosts that strangers name, as a Client connects
// to policy hosts: special addresses are refused, the address that was checked is
// the one that is dialled, and the proxy is used. It is safe for concurrent use.
type Dialer struct{ client *Client }

// NewDialer returns a dialer. Its callers bound the time, not Config.Timeout. Without
// verify it accepts any certificate.
func NewDialer(config Config, verify bool) (*Dialer, error) {
	config.Timeout = ConnectTimeout // any: a client must have one
	client, err := NewClient(config)
	if err != nil {
		return nil, err
	}
	client.tls.InsecureSkipVerify = !verify
	client.tls.CurvePreferences = nil // what is sent is not public, as policies are
	return &Dialer{client}, nil
}

// DialTLS returns a TLS connection to host at port 443. Closing it does not block.
// The error wraps one of those of Client.Fetch, and calls host the policy host.
func (d *Dialer) DialTLS(ctx context.Context, host string) (net.Conn, error) {
	if !hostname.Valid(host) {
		return nil, fmt.Errorf("%w: no such name can be in the DNS", ErrHostAbsent)
	}
	addrs, err := d.client.addresses(ctx, host)
	if err != nil {
		return nil, err
	}
	s, err := d.client.connect(ctx, host, addrs, nil)
	if errors.Is(err, errPanic) {
		panic(err)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}
