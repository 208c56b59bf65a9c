package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
)

// Keys of the configuration that name sockets. systemd names those that it
// passes alike (FileDescriptorName=); for lookups "socketmap", "socketmap-chroot".
const (
	keyListen     = "listen"
	keyControl    = "control"
	keyMetrics    = "metrics"
	nameSocketmap = "socketmap"
	nameTLSRPT    = "tlsrpt"      // the socket that Postfix tells of TLS sessions
	nameExim      = "tlsrpt-exim" // and Exim's
)

var socketKeys = []string{keyListen, keyControl, keyMetrics}

// sockets are endpoints by the key that names them.
type sockets map[string][]endpoint.Endpoint

// socketsOf are those that the configuration has.
func socketsOf(cfg *config.Config) sockets {
	s := sockets{keyListen: cfg.Listen, keyControl: {cfg.Control}}
	if cfg.Metrics.Network != "" {
		s[keyMetrics] = []endpoint.Endpoint{cfg.Metrics}
	}
	return s
}

// parsed are the endpoints of names in Postfix's syntax, as the daemon tells them.
func parsed(names []string) (list []endpoint.Endpoint) {
	for _, name := range names {
		if e, err := endpoint.Parse(name); err == nil {
			list = append(list, e)
		}
	}
	return list
}

// names are the endpoints of a key in Postfix's syntax.
func (s sockets) names(key string) []string {
	names := make([]string, len(s[key]))
	for i, e := range s[key] {
		names[i] = e.String()
	}
	return names
}

// listeners are the open sockets by key.
type listeners map[string][]net.Listener

func (l listeners) sockets() sockets {
	s := make(sockets)
	for key, list := range l {
		for _, one := range list {
			s[key] = append(s[key], endpoint.Of(one.Addr()))
		}
	}
	return s
}

// A socket is one that this process opens for a key of the configuration.
type socket struct {
	key  string
	at   endpoint.Endpoint
	mode fs.FileMode
}

func (s socket) open() (net.Listener, error) {
	if s.key == keyControl {
		return control.Listen(s.at.Address)
	}
	return endpoint.Listen(s.at, s.mode)
}

// A missingSocket is the error of a socket that cannot be opened.
type missingSocket struct {
	key string
	error
}

func (m *missingSocket) Error() string { return m.key + ": " + m.error.Error() }
func (m *missingSocket) Unwrap() error { return m.error }

// listen opens the sockets of the configuration, or takes those that systemd
// passed. Where it passed any, the others are masked or stopped, and none is
// opened in their place: a socket of this process would end with it. The metrics
// are another matter: their socket unit is off unless somebody wants it.
//
// Sockets that are open already and still wanted stay open. On hold there are no
// metrics. A socket that cannot be opened or used costs one log line: an error would
// end the daemon, and all mail would wait. It is one if no socket for lookups is left.
func (s *service) listen(onHold bool) error {
	if s.passed == nil {
		if s.passed, s.sessions, s.unused = passedSockets(); len(s.passed) > 0 || len(s.unused) > 0 {
			s.overridden = []string{keyListen, keyControl}
		}
		if len(s.passed[keyMetrics]) > 0 {
			s.overridden = socketKeys
		}
	}
	var wanted []socket
	for _, key := range socketKeys {
		for _, e := range socketsOf(s.cfg)[key] {
			if !slices.Contains(s.overridden, key) && !(onHold && key == keyMetrics) {
				wanted = append(wanted, socket{key, e, s.cfg.Socket.Mode})
			}
		}
	}
	for one, l := range s.own {
		if !slices.Contains(wanted, one) {
			l.Close()
			delete(s.own, one)
		}
	}
	s.listeners = maps.Clone(s.passed)
	missing := slices.Clone(s.unused)
	for _, one := range wanted {
		l := s.own[one]
		if l == nil {
			var err error
			if l, err = one.open(); err != nil {
				missing = append(missing, &missingSocket{one.key, err})
				continue
			}
		}
		s.own[one] = l
		s.listeners[one.key] = append(s.listeners[one.key], l)
	}
	if len(s.listeners[keyListen]) > 0 {
		s.missing = nil
		for _, err := range missing {
			next, severity := cmp.Or(hintOf(err), "mend that")+thenRestart, observe.Page
			if m := (*missingSocket)(nil); errors.As(err, &m) && m.key != keyListen {
				severity = observe.Ticket
			}
			s.log.Error("the daemon runs without a socket", "err", err, "next", next)
			s.missing = append(s.missing, control.Trouble{Condition: "socket", Severity: severity, What: "the daemon runs without it: " + err.Error(), Next: next})
		}
		return nil
	}
	if len(missing) > 0 {
		return errors.Join(missing...)
	}
	return hint(errors.New("systemd passed no socket for lookups"),
		"unmask one of them, or free its port, and start anew: systemctl unmask sts-tlsmap.socket; systemctl restart sts-tlsmap")
}

// An intake is the sockets on which MTAs tell of TLS sessions; nil: none.
type intake struct {
	postfix net.PacketConn
	exim    net.Listener
}

// passedSockets returns what systemd passed (sd_listen_fds(3)): listeners, and the
// sockets for TLS reports, if there are any. There is an error for each name under which
// it passed sockets that cannot be used.
func passedSockets() (l listeners, sessions intake, unused []error) {
	byName, err := activation.ListenersWithNames()
	if err != nil {
		unused = append(unused, fmt.Errorf("sockets passed by systemd: %w", err))
	}
	for _, one := range byName[nameTLSRPT] { // a datagram socket is a net.Listener here
		if sessions.postfix, err = datagrams(one); err != nil {
			sessions.postfix = new(net.UDPConn) // which reports refuse; lookups go on
		}
	}
	for _, one := range byName[nameExim] {
		sessions.exim = keepFile(one)
	}
	delete(byName, nameTLSRPT)
	delete(byName, nameExim)
	l = make(listeners)
	for _, name := range slices.Sorted(maps.Keys(byName)) { // "socketmap" is the first listener
		key, list := name, byName[name]
		if strings.HasPrefix(name, nameSocketmap) {
			key = keyListen
		}
		if isUnix := list[0].Addr().Network() == "unix"; !slices.Contains(socketKeys, key) || key == keyControl && (len(list) > 1 || !isUnix) {
			unused = append(unused, hint(fmt.Errorf("systemd passed %d sockets named %q, the first of them %s", len(list), name, list[0].Addr().Network()),
				"set FileDescriptorName= to %s..., %s (one unix socket) or %s in the socket unit", nameSocketmap, keyControl, keyMetrics))
			continue
		}
		for _, passed := range list {
			keepFile(passed)
		}
		l[key] = append(l[key], list...)
	}
	return l, sessions, unused
}

// keepFile has the listener's file stay when it is closed: it is systemd's.
func keepFile(l net.Listener) net.Listener {
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l
}

// closeOwn closes the sockets that this process opened, and removes their files.
func (s *service) closeOwn() {
	for _, l := range s.own {
		l.Close()
	}
}

// datagrams returns the socket of a listener, and closes the listener.
func datagrams(l net.Listener) (net.PacketConn, error) {
	defer l.Close()
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FilePacketConn(f)
}
