package resolver

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
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

// fromFile returns the list of the configuration's resolv.conf. One that is
// absent is as an empty one.
func fromFile(c Config, port uint16) (*serverList, error) {
	var r io.Reader = strings.NewReader("")
	f, err := os.Open(c.ResolvConf)
	switch {
	case err == nil:
		defer f.Close()
		r = f
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	rc, err := ReadResolvConf(r)
	if err != nil {
		return nil, err
	}
	return fromResolvConf(c, rc, port), nil
}

// fromResolvConf completes the servers of resolv.conf. The configuration's own
// settings go before what it says.
func fromResolvConf(c Config, rc ResolvConf, port uint16) *serverList {
	var addrs []netip.AddrPort
	for _, a := range rc.Servers {
		addrs = append(addrs, netip.AddrPortFrom(a, port))
	}
	l := newList(c, addrs)
	if rc.TrustAD && c.TrustAD == nil {
		l.trustAD = true
	}
	if rc.Timeout > 0 && c.Timeout <= 0 {
		l.timeout = rc.Timeout
	}
	if rc.Attempts > 0 {
		l.attempts = rc.Attempts
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
		l, err = fromFile(r.conf, r.port)
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
