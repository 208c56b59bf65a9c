package resolver

import (
	"bufio"
	"bytes"
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
	"sync/atomic"
	"time"
)

// A serverList is whom to ask and whether to believe them. It is never changed.
type serverList struct {
	servers  []*server
	trustAD  bool
	timeout  time.Duration
	attempts int
}

// newList completes a list of servers. The configuration goes before resolv.conf.
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

// order returns the servers as configured, those that rest last.
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

	misses    atomic.Int32              // time-outs in a row
	restUntil atomic.Pointer[time.Time] // asked last until then; nil: it does not rest
}

func (s *server) heard() {
	s.misses.Store(0)
	s.restUntil.Store(nil)
}

func (s *server) silent(now time.Time) {
	if s.misses.Add(1) >= restAfter {
		until := now.Add(restTime)
		s.restUntil.Store(&until)
	}
}

func (s *server) rests(now time.Time) bool {
	until := s.restUntil.Load()
	return until != nil && now.Before(*until)
}

// servers returns the list to ask now. It reads resolv.conf again once in a while;
// no query waits for another one's look.
func (r *Resolver) servers() *serverList {
	if len(r.conf.Servers) == 0 && r.reading.TryLock() {
		if time.Since(r.readAt) >= r.look {
			if err := r.readAgain(); err != nil && !r.broken { // once, not every few seconds
				r.conf.Log.Warn("resolver configuration cannot be read, the one from before stays in force", "file", r.conf.ResolvConf, "err", err)
				r.broken = true
			}
		}
		r.reading.Unlock()
	}
	return r.list.Load()
}

// readAgain reads resolv.conf. An absent file is as an empty one.
func (r *Resolver) readAgain() error {
	r.readAt = time.Now()
	text, err := os.ReadFile(r.conf.ResolvConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := ReadResolvConf(bytes.NewReader(text))
	if err != nil {
		return err
	}
	r.broken = false
	var addrs []netip.AddrPort
	for _, a := range file.Servers {
		addrs = append(addrs, netip.AddrPortFrom(a, r.port))
	}
	l, old := newList(r.conf, addrs, file), r.list.Load()
	switch {
	case old == nil:
	case l.trustAD == old.trustAD && slices.Equal(addrs, old.addrs()):
		l.servers = old.servers // and how they did
	default:
		r.generation.Add(1)
		r.conf.Log.Info("resolver configuration changed", "file", r.conf.ResolvConf, "servers", fmt.Sprint(addrs), "trust_ad", l.trustAD)
	}
	r.list.Store(l)
	return nil
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
