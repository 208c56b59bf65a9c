package resolver

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
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

// newList completes a list of servers. The configuration goes before what
// resolv.conf says.
func newList(c Config, addrs []netip.AddrPort, file ResolvConf) *serverList {
	l := &serverList{
		timeout:  cmp.Or(c.Timeout, file.Timeout, defaultTimeout),
		attempts: cmp.Or(file.Attempts, defaultAttempts),
	}
	local := true
	for _, a := range addrs {
		l.servers = append(l.servers, &server{addr: a})
		local = local && a.Addr().Unmap().IsLoopback()
	}
	l.trustAD = local || file.TrustAD
	if c.TrustAD != nil {
		l.trustAD = *c.TrustAD
	}
	return l
}

func (l *serverList) addrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, s := range l.servers {
		addrs = append(addrs, s.addr)
	}
	return addrs
}

// order returns the servers in the order in which to ask them: as configured,
// those that were silent lately last.
func (l *serverList) order(now time.Time) []*server {
	var first, last []*server
	for _, s := range l.servers {
		if s.rests(now) {
			last = append(last, s)
		} else {
			first = append(first, s)
		}
	}
	return append(first, last...)
}

// A server is one name server, and how it did lately.
type server struct {
	addr netip.AddrPort

	mu        sync.Mutex
	misses    int       // time-outs in a row
	restUntil time.Time // asked last until then
}

func (s *server) heard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.misses, s.restUntil = 0, time.Time{}
}

func (s *server) silent(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.misses++; s.misses >= restAfter {
		s.restUntil = now.Add(restTime)
	}
}

func (s *server) rests(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.restUntil)
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

// servers returns the list to ask now. It looks whether resolv.conf has
// changed, but not more often than once in a while, and no query waits for
// another one's look.
func (r *Resolver) servers() *serverList {
	if len(r.conf.Servers) == 0 && r.reading.TryLock() {
		if time.Since(r.lookedAt) >= r.look {
			r.lookAgain()
			r.lookedAt = time.Now()
		}
		r.reading.Unlock()
	}
	return r.list.Load()
}

// lookAgain reads resolv.conf if it has changed. If that fails, what was read
// before stays.
func (r *Resolver) lookAgain() {
	info, err := os.Stat(r.conf.ResolvConf)
	if err == nil && r.seen != nil && os.SameFile(info, r.seen) && info.Size() == r.seen.Size() && info.ModTime().Equal(r.seen.ModTime()) {
		r.broken = false
		return
	}
	l, seen, err := r.readFile()
	if err != nil {
		if !r.broken { // once, not every few seconds
			r.conf.Log.Warn("resolver configuration cannot be read, the one from before stays in force", "file", r.conf.ResolvConf, "err", err)
		}
		r.broken = true
		return
	}
	r.seen, r.broken = seen, false
	old := r.list.Load()
	if l.trustAD == old.trustAD && slices.Equal(l.addrs(), old.addrs()) {
		l.servers = old.servers // and how they did
		r.list.Store(l)
		return
	}
	r.list.Store(l)
	r.generation.Add(1)
	r.conf.Log.Info("resolver configuration changed", "file", r.conf.ResolvConf, "servers", fmt.Sprint(l.addrs()), "trust_ad", l.trustAD)
}

// readFile reads resolv.conf. An absent one is as an empty one.
func (r *Resolver) readFile() (*serverList, os.FileInfo, error) {
	var text io.Reader = strings.NewReader("")
	var info os.FileInfo
	f, err := os.Open(r.conf.ResolvConf)
	switch {
	case err == nil:
		defer f.Close()
		if info, err = f.Stat(); err != nil {
			return nil, nil, err
		}
		text = f
	case !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	}
	file, err := ReadResolvConf(text)
	if err != nil {
		return nil, nil, err
	}
	var addrs []netip.AddrPort
	for _, a := range file.Servers {
		addrs = append(addrs, netip.AddrPortFrom(a, r.port))
	}
	return newList(r.conf, addrs, file), info, nil
}

// A ResolvConf is what resolv.conf(5) says about whom to ask.
type ResolvConf struct {
	Servers  []netip.Addr  // at least one
	TrustAD  bool          // the servers' AD bit is passed on
	Timeout  time.Duration // for one server to answer once; zero: not said
	Attempts int           // rounds through the servers; zero: not said
}

// ReadResolvConf reads a resolv.conf as libc does: it skips lines and options
// that it does not understand, and a file that names no server stands for one
// on this machine.
func ReadResolvConf(r io.Reader) (ResolvConf, error) {
	var c ResolvConf
	lines := bufio.NewScanner(io.LimitReader(r, maxResolvConf))
	lines.Buffer(nil, maxResolvConf+1)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(c.Servers) < maxServers {
				c.Servers = append(c.Servers, a)
			}
		case "options":
			for _, o := range f[1:] {
				c.setOption(o)
			}
		}
	}
	if len(c.Servers) == 0 {
		c.Servers = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return c, lines.Err()
}

// setOption takes one word of an options line.
func (c *ResolvConf) setOption(option string) {
	key, value, _ := strings.Cut(option, ":")
	n, err := strconv.Atoi(value)
	valid := err == nil && n > 0
	switch {
	case key == "trust-ad":
		c.TrustAD = true
	case key == "timeout" && valid:
		c.Timeout = time.Duration(min(n, int(maxTimeout/time.Second))) * time.Second
	case key == "attempts" && valid:
		c.Attempts = min(n, maxAttempts)
	}
}
