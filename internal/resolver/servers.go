package resolver

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// A serverList is whom to ask and whether to believe them. It is not changed;
// a new one takes its place.
type serverList struct {
	servers  []*server
	trustAD  bool
	timeout  time.Duration
	attempts int
}

// A server is one name server, and how it did lately.
type server struct {
	addr   netip.AddrPort
	misses atomic.Int32 // time-outs in a row
	rests  atomic.Int64 // asked last until then; Unix nanoseconds
}

func (s *server) heard() {
	if s.misses.Load() != 0 {
		s.misses.Store(0)
		s.rests.Store(0)
	}
}

func (s *server) silent(now time.Time) {
	if s.misses.Add(1) >= restAfter {
		s.rests.Store(now.Add(restTime).UnixNano())
	}
}

// order returns the servers in the order in which to ask them: as configured,
// those that were silent lately last.
func (l *serverList) order(now time.Time) []*server {
	resting := func(s *server) bool {
		left := s.rests.Load() - now.UnixNano()
		return left > 0 && left <= int64(restTime) // more: the clock was set back
	}
	if !slices.ContainsFunc(l.servers, resting) {
		return l.servers
	}
	var first, last []*server
	for _, s := range l.servers {
		if resting(s) {
			last = append(last, s)
		} else {
			first = append(first, s)
		}
	}
	return append(first, last...)
}

// same says whether nothing differs that Generation counts.
func (l *serverList) same(o *serverList) bool {
	return l.trustAD == o.trustAD && slices.EqualFunc(l.servers, o.servers,
		func(a, b *server) bool { return a.addr == b.addr })
}

// newList completes a list of servers by what the configuration says.
func newList(c Config, addrs []netip.AddrPort) *serverList {
	l := &serverList{timeout: defaultTimeout, attempts: defaultAttempts}
	local := true
	for _, a := range addrs {
		l.servers = append(l.servers, &server{addr: a})
		local = local && a.Addr().Unmap().IsLoopback()
	}
	l.trustAD = local
	if c.TrustAD != nil {
		l.trustAD = *c.TrustAD
	}
	if c.Timeout > 0 {
		l.timeout = c.Timeout
	}
	return l
}

// configured returns the list of the servers named in the configuration.
func configured(c Config) (*serverList, error) {
	var addrs []netip.AddrPort
	for _, s := range c.Servers {
		a, err := parseServer(s)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	return newList(c, addrs), nil
}

// parseServer reads an address with or without a port.
func parseServer(s string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil && ap.Port() != 0 {
		return ap, nil
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("DNS server %q: want an address, with or without a port, as 127.0.0.1:53 or [::1]:53", s)
	}
	return netip.AddrPortFrom(a, 53), nil
}

// readResolvConf reads resolv.conf(5) as libc does: a file that is absent, or
// names no server, stands for a server on this machine.
func readResolvConf(c Config, port uint16) (*serverList, error) {
	b, err := readBounded(c.ResolvConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return parseResolvConf(c, b, port), nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxResolvConf))
}

// parseResolvConf reads the lines that concern us: nameserver and options
// timeout, attempts and trust-ad. Others, and what it does not understand, it
// passes over, as libc does.
func parseResolvConf(c Config, b []byte, port uint16) *serverList {
	var addrs []netip.AddrPort
	var options []string
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxResolvConf+1)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(addrs) < maxServers {
				addrs = append(addrs, netip.AddrPortFrom(a, port))
			}
		case "options":
			options = append(options, f[1:]...)
		}
	}
	if len(addrs) == 0 {
		addrs = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)}
	}
	l := newList(c, addrs)
	for _, o := range options {
		l.setOption(c, o)
	}
	return l
}

// setOption carries out one word of an options line. The configuration's own
// settings go before it.
func (l *serverList) setOption(c Config, option string) {
	key, value, _ := strings.Cut(option, ":")
	n, err := strconv.Atoi(value)
	valid := err == nil && n > 0
	switch {
	case key == "trust-ad" && c.TrustAD == nil:
		l.trustAD = true
	case key == "timeout" && valid && c.Timeout <= 0:
		l.timeout = maxTimeout
		if n < int(maxTimeout/time.Second) {
			l.timeout = time.Duration(n) * time.Second
		}
	case key == "attempts" && valid:
		l.attempts = min(n, maxAttempts)
	}
}

// A fileStamp tells one state of a file from another. That of an absent file
// is zero.
type fileStamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func stampOf(path string) (fileStamp, error) {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fileStamp{}, nil
	}
	if err != nil {
		return fileStamp{}, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fileStamp{size: fi.Size(), mtime: syscall.NsecToTimespec(fi.ModTime().UnixNano())}, nil
	}
	return fileStamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

// servers returns the list to ask now. It looks whether resolv.conf has
// changed, but not more often than once in a while, and no query waits for
// another one's look.
func (r *Resolver) servers() *serverList {
	if len(r.conf.Servers) > 0 {
		return r.list.Load()
	}
	since := time.Now().UnixNano() - r.lookedAt.Load()
	if (since >= int64(r.look) || since < 0) && r.reading.TryLock() { // less than nothing: the clock was set back
		r.lookAgain()
		r.lookedAt.Store(time.Now().UnixNano())
		r.reading.Unlock()
	}
	return r.list.Load()
}

// lookAgain reads resolv.conf if it has changed. If that fails, what was read
// before stays.
func (r *Resolver) lookAgain() {
	stamp, err := stampOf(r.conf.ResolvConf)
	if err == nil && stamp == r.seen {
		r.broken = false
		return
	}
	var l *serverList
	if err == nil {
		l, err = readResolvConf(r.conf, r.port)
	}
	if err != nil {
		if r.broken {
			return // it was said, and this comes every few seconds
		}
		r.broken = true
		r.log.Warn("resolver configuration cannot be read, what it said before stays in force", "file", r.conf.ResolvConf, "err", err)
		return
	}
	r.seen, r.broken = stamp, false
	if old := r.list.Load(); !l.same(old) {
		r.list.Store(l)
		r.generation.Add(1)
		r.log.Info("resolver configuration changed", "file", r.conf.ResolvConf, "servers", r.addrs(l), "trust_ad", l.trustAD)
		return
	}
	r.keepOptions(l)
}

// keepOptions takes over the options of l, and the memory of its servers from
// the list before.
func (r *Resolver) keepOptions(l *serverList) {
	l.servers = r.list.Load().servers
	r.list.Store(l)
}

func (r *Resolver) addrs(l *serverList) string {
	var s []string
	for _, srv := range l.servers {
		s = append(s, srv.addr.String())
	}
	return strings.Join(s, " ")
}
