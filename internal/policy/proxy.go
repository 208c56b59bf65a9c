package policy

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// ProxyFromEnvironment reads HTTPS_PROXY and NO_PROXY, once, for Config.Proxy.
// Named is the URL in HTTPS_PROXY without credentials, empty if there is none.
// An error names the variable, and shows nothing of its value.
func ProxyFromEnvironment() (proxy func(*url.URL) (*url.URL, error), named string, err error) {
	config := httpproxy.FromEnvironment()
	if config.HTTPSProxy == "" {
		return config.ProxyFunc(), "", nil
	}
	variable := "https_proxy" // it takes precedence
	if os.Getenv(variable) == "" {
		variable = "HTTPS_PROXY"
	}
	// The package takes a value that it cannot read for no proxy, or for one at
	// a host called http with an empty port.
	alone := httpproxy.Config{HTTPSProxy: config.HTTPSProxy}
	u, err := alone.ProxyFunc()(&url.URL{Scheme: "https", Host: "mta-sts.example.com"})
	switch {
	case err != nil || u == nil || u.Hostname() == "" || strings.HasSuffix(u.Host, ":") || !validPort(u.Port()):
		return nil, "", fmt.Errorf("%s is not the URL of a proxy", variable)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, "", fmt.Errorf("%s: %s is neither an http nor an https proxy", variable, quote(u.Scheme))
	}
	return config.ProxyFunc(), u.Scheme + "://" + u.Host, nil
}

// validPort says whether a URL may have this port; empty: the scheme's own.
func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return port == "" || err == nil && n > 0
}

// errProxyDown ends a fetch: the proxy is no more reachable for the next address.
var errProxyDown = fmt.Errorf("%w: connecting", ErrProxy)

// tunnel returns a connection through proxy to target, an address and port. The
// administrator chose the proxy: its name is looked up as the system does it,
// and its address may be private.
func (c *Client) tunnel(ctx context.Context, proxy *url.URL, target string) (net.Conn, error) {
	conn, err := c.dialProxy(ctx, proxy)
	if err != nil {
		return nil, fmt.Errorf("%w to %s: %w", errProxyDown, proxy.Host, printable{err})
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	status, err := c.askForTunnel(conn, proxy, target)
	if !stop() {
		err = cmp.Or(err, ctx.Err())
	}
	doing := "CONNECT " + target + " at " + proxy.Host
	switch {
	case err != nil:
		err = failed(ctx, ErrProxy, doing, err)
	case status == http.StatusProxyAuthRequired:
		err = fmt.Errorf("%w: %s: the proxy wants other credentials (HTTP status 407)", ErrProxy, doing)
	case status != http.StatusOK:
		err = fmt.Errorf("%w: %s: HTTP status %d", ErrConnect, doing, status)
	default:
		return conn, nil
	}
	conn.Close()
	return nil, err
}

// dialProxy connects to the proxy, with TLS if it is an https one.
func (c *Client) dialProxy(ctx context.Context, proxy *url.URL) (net.Conn, error) {
	port := cmp.Or(proxy.Port(), map[string]string{"http": "80", "https": "443"}[proxy.Scheme])
	conn, err := c.config.Dial(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil || proxy.Scheme != "https" {
		return conn, err
	}
	tlsConn := tls.Client(conn, &tls.Config{RootCAs: c.tls.RootCAs, MinVersion: tls.VersionTLS12, ServerName: proxy.Hostname()})
	if err := tlsConn.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tlsConn, nil
}

// askForTunnel sends CONNECT (RFC 9110, 9.3.6) and returns the status of the
// answer. What the reader may have read beyond the header is lost: the policy
// host does not speak first in TLS.
func (c *Client) askForTunnel(conn net.Conn, proxy *url.URL, target string) (status int, err error) {
	request := &http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Opaque: target},
		Host:   target,
		Header: http.Header{"User-Agent": {c.config.UserAgent}},
	}
	if proxy.User != nil {
		password, _ := proxy.User.Password()
		credentials := base64.StdEncoding.EncodeToString([]byte(proxy.User.Username() + ":" + password))
		request.Header.Set("Proxy-Authorization", "Basic "+credentials)
	}
	if err := request.Write(conn); err != nil {
		return 0, err
	}
	response, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, MaxHeader)), request)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, nil
}
