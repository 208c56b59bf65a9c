package fleet

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	connsPerServer = 8 // 500 relays stay below a server's 10,000 clients
	idleFor        = time.Minute
	maxServers     = 100 // of a Cluster; each may keep connsPerServer connections
	maxRedirects   = 5

	getLimit   = 256 << 10 // bytes of the reply to GET
	replyLimit = 4 << 20   // and to any other command
)

// A client speaks with the servers of one engine. It connects when it is asked, and holds
// no goroutine.
type client struct {
	target
	password string
	roots    *x509.CertPool // nil: the system's

	mu      sync.Mutex
	servers map[string]*server // by address
	primary string             // under Sentinel; empty: not known
	slots   map[uint16]string  // of a Cluster, as far as known, to addresses
}

// newClient reads the files, and does not connect.
func newClient(t target, passwordFile, caFile string) (*client, error) {
	c := &client{target: t, servers: make(map[string]*server), slots: make(map[uint16]string)}
	if passwordFile != "" {
		text, err := readFile(passwordFile)
		if err != nil {
			return nil, err
		}
		if c.password = strings.TrimSpace(string(text)); c.password == "" {
			return nil, fmt.Errorf("%s is empty", passwordFile)
		}
	}
	if c.user != "" && c.password == "" {
		return nil, fmt.Errorf("the user %q has no password: set password_file", c.user)
	}
	if caFile != "" {
		text, err := readFile(caFile)
		if err != nil {
			return nil, err
		}
		if c.roots = x509.NewCertPool(); !c.roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("there is no certificate in PEM form in %s", caFile)
		}
	}
	return c, nil
}

// do does a command at the server of a key. ctx has a deadline. The error is a replyError
// if the engine has replied one.
func (c *client) do(ctx context.Context, key string, args ...string) (any, error) {
	addr, err := c.route(ctx, key)
	if err != nil {
		return nil, err
	}
	asking := false
	for range maxRedirects {
		reply, err := c.serverAt(addr).do(ctx, asking, args)
		refused, isReply := errors.AsType[replyError](err)
		switch word, rest, _ := strings.Cut(string(refused), " "); {
		case err == nil:
			return reply, nil
		case c.kind == kindCluster && (word == "MOVED" || word == "ASK"):
			next, ok := c.redirect(addr, word, rest)
			if !ok {
				return nil, err
			}
			addr, asking = next, word == "ASK"
			continue
		case !isReply, word == "READONLY", word == "CLUSTERDOWN", word == "MASTERDOWN", word == "LOADING":
			c.forget(addr)
		}
		return nil, err
	}
	return nil, errors.New("the servers of the Cluster redirect without end")
}

// route returns the address of the server to ask.
func (c *client) route(ctx context.Context, key string) (string, error) {
	c.mu.Lock()
	first, primary := c.hosts[0], c.primary
	moved := c.slots[slotOf(key)]
	c.mu.Unlock()
	switch {
	case c.kind == kindCluster && key != "":
		return cmp.Or(moved, first), nil
	case c.kind != kindSentinel:
		return first, nil
	case primary != "":
		return primary, nil
	}
	return c.askSentinel(ctx)
}

// askSentinel asks the Sentinels in turn for the address of the primary.
func (c *client) askSentinel(ctx context.Context) (string, error) {
	c.mu.Lock()
	hosts := slices.Clone(c.hosts)
	c.mu.Unlock()
	var last error
	for _, host := range hosts {
		reply, err := c.serverAt(host).do(ctx, false, []string{"SENTINEL", "get-master-addr-by-name", c.name})
		list, _ := reply.([]any)
		if err == nil && len(list) == 2 {
			name, _ := list[0].(string)
			port, _ := list[1].(string)
			addr, err := joinAddress(name, port)
			if err != nil {
				last = fmt.Errorf("the Sentinel at %s: %w", host, err)
				c.forget(host)
				continue
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.primary = addr
			return addr, nil
		}
		if err == nil {
			err = fmt.Errorf("the Sentinel at %s does not know %q", host, c.name)
		}
		last = err
		c.forget(host)
	}
	return "", last
}

// forget takes note that a server does not serve: another one is asked next.
func (c *client) forget(addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.primary == addr {
		c.primary = ""
	}
	for slot, at := range c.slots {
		if at == addr {
			delete(c.slots, slot)
		}
	}
	if i := slices.Index(c.hosts, addr); i >= 0 {
		c.hosts = append(slices.Delete(slices.Clone(c.hosts), i, i+1), addr)
	} else if c.kind != kindSingle {
		c.hosts = append(slices.Clone(c.hosts[1:]), c.hosts[0])
	}
}

// redirect follows "MOVED SLOT ADDRESS", which is kept, or "ASK SLOT ADDRESS".
func (c *client) redirect(from, word, rest string) (addr string, ok bool) {
	number, addr, _ := strings.Cut(rest, " ")
	slot, err := strconv.ParseUint(number, 10, 14)
	colon := strings.LastIndexByte(addr, ':') // an IPv6 address has no brackets here
	if err != nil || colon < 0 {
		return "", false
	}
	host := strings.Trim(addr[:colon], "[]")
	if host == "" { // the same as before
		host, _, _ = net.SplitHostPort(from)
	}
	if addr, err = joinAddress(host, addr[colon+1:]); err != nil {
		return "", false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.servers[addr] == nil && len(c.servers) >= maxServers {
		return "", false
	}
	if word == "MOVED" {
		c.slots[uint16(slot)] = addr
	}
	return addr, true
}

// joinAddress checks an address that a server names: it is kept, dialed and logged.
func joinAddress(host, port string) (string, error) {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" || len(host) > maxName || host[0] == '/' {
		return "", errors.New("it names no address of a server")
	}
	return net.JoinHostPort(host, port), nil
}

// slotOf returns the slot of a key in a Cluster: of the part in braces, if there is one.
func slotOf(key string) uint16 {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			key = tag
		}
	}
	var crc uint16 // CRC-16/XMODEM
	for _, b := range []byte(key) {
		crc ^= uint16(b) << 8
		for range 8 {
			top := crc & 0x8000
			if crc <<= 1; top != 0 {
				crc ^= 0x1021
			}
		}
	}
	return crc % 16384
}

func (c *client) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.servers {
		s.drop(0)
	}
}

func (c *client) serverAt(addr string) *server {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.servers[addr]
	if s == nil {
		s = &server{client: c, addr: addr, places: make(chan struct{}, connsPerServer)}
		if len(c.servers) < maxServers {
			c.servers[addr] = s
		}
	}
	return s
}

// A server is one process of the engine, with a few connections to it.
type server struct {
	*client
	addr   string
	places chan struct{} // one token a connection in use

	mu   sync.Mutex
	idle []*conn
}

type conn struct {
	net.Conn
	r    *bufio.Reader
	last time.Time // used
}

// do does a command. A connection that the engine has closed meanwhile is replaced once.
func (s *server) do(ctx context.Context, asking bool, args []string) (any, error) {
	select {
	case s.places <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.places }()
	c := s.take()
	reused := c != nil
	for {
		if c == nil {
			var err error
			if c, err = s.dial(ctx); err != nil {
				return nil, err
			}
		}
		reply, err := s.ask(ctx, c, asking, args)
		if reused && isClosed(err) && ctx.Err() == nil {
			s.drop(0)
			c, reused = nil, false
			continue
		}
		return reply, err
	}
}

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// ask does a command on a connection, and keeps the connection if it is in order.
func (s *server) ask(ctx context.Context, c *conn, asking bool, args []string) (any, error) {
	if asking {
		if _, err := c.roundTrip(ctx, "ASKING"); err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	reply, err := c.roundTrip(ctx, args...)
	if refused, ok := errors.AsType[replyError](err); ok && strings.HasPrefix(string(refused), "NOAUTH") && s.kind == kindSentinel {
		if err = c.auth(ctx, s.user, s.password); err == nil { // a Sentinel with a password
			reply, err = c.roundTrip(ctx, args...)
		}
	}
	if err != nil && !errors.As(err, new(replyError)) || c.r.Buffered() > 0 {
		_ = c.Close()
		return reply, err
	}
	c.last = time.Now()
	s.mu.Lock()
	s.idle = append(s.idle, c)
	s.mu.Unlock()
	s.drop(idleFor)
	return reply, err
}

// take returns the connection used last, if one is idle.
func (s *server) take() *conn {
	s.drop(idleFor)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.idle)
	if n == 0 {
		return nil
	}
	c := s.idle[n-1]
	s.idle = s.idle[:n-1]
	return c
}

// drop closes connections that have been idle for so long: those used longest ago are first.
func (s *server) drop(long time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.idle) > 0 && time.Since(s.idle[0].last) >= long {
		_ = s.idle[0].Close()
		s.idle = s.idle[1:]
	}
}

func (s *server) dial(ctx context.Context) (*conn, error) {
	network := "tcp"
	if strings.HasPrefix(s.addr, "/") {
		network = "unix"
	}
	raw, err := new(net.Dialer).DialContext(ctx, network, s.addr)
	if err != nil {
		return nil, err
	}
	if s.tls {
		host, _, _ := net.SplitHostPort(s.addr)
		secure := tls.Client(raw, &tls.Config{ServerName: host, RootCAs: s.roots, MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		raw = secure
	}
	c := &conn{Conn: raw, r: bufio.NewReaderSize(raw, maxLine)}
	if s.password != "" && !s.isSentinel(s.addr) {
		if err := c.auth(ctx, s.user, s.password); err != nil {
			_ = c.Close()
			return nil, fmt.Errorf("log in at %s: %w", s.addr, err)
		}
	}
	return c, nil
}

func (c *client) isSentinel(addr string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kind == kindSentinel && slices.Contains(c.hosts, addr)
}

func (c *conn) auth(ctx context.Context, user, password string) error {
	args := []string{"AUTH", user, password}
	if user == "" {
		args = []string{"AUTH", password}
	}
	_, err := c.roundTrip(ctx, args...)
	return err
}

// roundTrip writes a command and reads its reply, until ctx ends.
func (c *conn) roundTrip(ctx context.Context, args ...string) (any, error) {
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.Write(appendCommand(nil, args)); err != nil {
		return nil, err
	}
	left := replyLimit
	if args[0] == "GET" {
		left = getLimit
	}
	return readReply(c.r, &left, 0)
}
