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
)

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
	if proxy != nil && proxy.Scheme != "http" && proxy.Scheme != "https" {
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
