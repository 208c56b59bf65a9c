package policy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
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

// ProxyFromEnvironment reads HTTPS_PROXY and NO_PROXY, now, for Config.Proxy.
// Named is the proxy of the first, without the user and the password that may be
// in it; empty: there is none. An error says which variable is wrong, and nothing
// of what is in it.
func ProxyFromEnvironment() (proxy func(*url.URL) (*url.URL, error), named string, err error) {
	config := httpproxy.FromEnvironment()
	if config.HTTPSProxy == "" {
		return config.ProxyFunc(), "", nil
	}
	variable := "https_proxy" // which goes first
	if os.Getenv(variable) == "" {
		variable = "HTTPS_PROXY"
	}
	// The package takes what it cannot read for no proxy, and does not tell; or
	// for one at a host called http, after which a colon stands.
	alone := httpproxy.Config{HTTPSProxy: config.HTTPSProxy}
	u, err := alone.ProxyFunc()(&url.URL{Scheme: "https", Host: "mta-sts.example.com"})
	switch {
	case err != nil || u == nil || u.Hostname() == "" || strings.HasSuffix(u.Host, ":") || !validPort(u.Port()):
		return nil, "", fmt.Errorf("%s is not the URL of a proxy", variable)
	case !speaks(u):
		return nil, "", fmt.Errorf("%s: %s is neither an http nor an https proxy", variable, quote(u.Scheme))
	}
	return config.ProxyFunc(), u.Scheme + "://" + u.Host, nil
}

// validPort says whether a URL may have this port; empty: the scheme's own.
func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return port == "" || err == nil && n > 0
}

// speaks says whether we speak the protocol of a proxy.
func speaks(proxy *url.URL) bool { return proxy.Scheme == "http" || proxy.Scheme == "https" }

// proxyFor returns the proxy that leads to a domain's policy host, or nil.
func (c *Client) proxyFor(domain string) (*url.URL, error) {
	if c.proxy == nil {
		return nil, nil
	}
	target, err := url.Parse(URL(domain))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHostAbsent, err)
	}
	proxy, err := c.proxy(target)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrProxy, words(err))
	}
	if proxy != nil && !speaks(proxy) {
		return nil, fmt.Errorf("%w: %s is neither an http nor an https proxy", ErrProxy, quote(proxy.Scheme))
	}
	return proxy, nil
}

// tunnel returns a connection through proxy to target, an address and port.
// The proxy itself is the administrator's choice: its name is looked up as the
// system does, and its address may be a private one.
func (c *Client) tunnel(ctx context.Context, proxy *url.URL, target string) (net.Conn, error) {
	port := proxy.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[proxy.Scheme]
	}
	doing := "CONNECT " + target + " at " + proxy.Host
	conn, err := c.dialProxy(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil {
		return nil, failed(ctx, ErrProxy, doing, err)
	}
	if proxy.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{RootCAs: c.tls.RootCAs, MinVersion: tls.VersionTLS12, ServerName: proxy.Hostname()})
	}
	unbind := bind(ctx, conn)
	err = c.askForTunnel(conn, proxy, target)
	if !unbind() && err == nil {
		err = ctx.Err() // it ended just now, and the connection is spoilt
	}
	if err != nil {
		conn.Close()
		return nil, failed(ctx, ErrProxy, doing, err)
	}
	return conn, nil
}

func (c *Client) askForTunnel(conn net.Conn, proxy *url.URL, target string) error {
	request := &http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Opaque: target},
		Host:   target,
		Header: http.Header{"User-Agent": {c.userAgent}},
	}
	if proxy.User != nil {
		password, _ := proxy.User.Password()
		request.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(proxy.User.Username()+":"+password)))
	}
	if err := request.Write(conn); err != nil {
		return err
	}
	// The policy host does not speak before it is spoken to: the reader holds
	// nothing that belongs to it.
	limited := &io.LimitedReader{R: conn, N: MaxHeader}
	reader := bufio.NewReader(limited)
	response, err := http.ReadResponse(reader, request)
	switch {
	case err != nil && limited.N <= 0:
		return fmt.Errorf("the header of the proxy's answer has more than %d bytes", MaxHeader)
	case err != nil:
		return err
	case response.StatusCode == http.StatusProxyAuthRequired:
		return errors.New("the proxy wants other credentials (HTTP status 407)")
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("the proxy answered with HTTP status %d", response.StatusCode)
	case reader.Buffered() > 0:
		return errors.New("the proxy sent more than an answer")
	}
	return nil
}
