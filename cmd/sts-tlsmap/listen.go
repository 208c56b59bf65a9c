package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

// Names of the sockets that systemd passes (FileDescriptorName=). Those of
// the socketmap begin with their word: "socketmap", "socketmap-chroot".
const (
	nameSocketmap = "socketmap"
	nameControl   = "control"
	nameMetrics   = "metrics"
)

// Keys of the configuration in whose place systemd's sockets are.
const (
	keyListen  = "listen"
	keyControl = "control"
	keyMetrics = "metrics"
)

// listeners are the open sockets.
type listeners struct {
	socketmap []net.Listener
	control   net.Listener   // nil: systemd was told to pass none
	metrics   []net.Listener // none: not served but on the control socket
	passed    bool           // by systemd, at least one of them

	metricsPassed bool // and those of the metrics
}

// names returns the socketmap's endpoints as they are, in Postfix's syntax.
func (l *listeners) names() []string {
	names := make([]string, len(l.socketmap))
	for i, s := range l.socketmap {
		names[i] = endpoint.Of(s.Addr()).String()
	}
	return names
}

// metricsNames returns the endpoints of the metrics likewise.
func (l *listeners) metricsNames() []string {
	names := make([]string, len(l.metrics))
	for i, s := range l.metrics {
		names[i] = endpoint.Of(s.Addr()).String()
	}
	return names
}

// controlName returns the path of the control socket; empty: there is none.
func (l *listeners) controlName() string {
	if l.control == nil {
		return ""
	}
	return l.control.Addr().String()
}

// overridden are the keys of the configuration that do not count, since systemd
// passed sockets.
func (l *listeners) overridden() []string {
	if !l.passed {
		return nil
	}
	keys := []string{keyListen, keyControl}
	if l.metricsPassed {
		keys = append(keys, keyMetrics)
	}
	return keys
}

func (l *listeners) close() error {
	var errs []error
	for _, s := range slices.Concat(l.socketmap, l.metrics) {
		errs = append(errs, s.Close())
	}
	if l.control != nil {
		errs = append(errs, l.control.Close())
	}
	return errors.Join(errs...)
}

// listen opens the sockets of the configuration, or takes those that systemd
// passed. Where it passed any, the others are masked or stopped, and none is
// opened in their place: the file system may be read-only for this process, and
// a socket of its own would end with it. The metrics are another matter: their
// socket unit is off unless somebody wants it, and the key may be used instead.
func (s *service) listen() error {
	var err error
	if s.listeners, err = passedListeners(); err != nil {
		return err
	}
	l := &s.listeners
	switch {
	case !l.passed:
		if err := s.listenItself(); err != nil {
			return errors.Join(err, l.close())
		}
	case len(l.socketmap) == 0:
		return errors.Join(hint(errors.New("systemd passed no socket for lookups"),
			"unmask one of them, or free its port, and start anew: systemctl unmask sts-tlsmap.socket; systemctl restart sts-tlsmap"), l.close())
	}
	if len(l.metrics) == 0 && s.cfg.Metrics.Network != "" {
		opened, err := endpoint.Listen(s.cfg.Metrics, s.cfg.Socket.Mode)
		if err != nil {
			return errors.Join(fmt.Errorf("metrics: %w", err), l.close())
		}
		l.metrics = append(l.metrics, opened)
	}
	return nil
}

// listenItself opens what lookups and the control need.
func (s *service) listenItself() (err error) {
	for _, e := range s.cfg.Listen {
		opened, err := endpoint.Listen(e, s.cfg.Socket.Mode)
		if err != nil {
			return err
		}
		s.listeners.socketmap = append(s.listeners.socketmap, opened)
	}
	s.listeners.control, err = control.Listen(s.cfg.Control.Address)
	return err
}

// passedListeners returns what systemd passed, by name (sd_listen_fds(3)).
func passedListeners() (listeners, error) {
	var l listeners
	byName, err := activation.ListenersWithNames()
	if err != nil {
		return l, fmt.Errorf("sockets passed by systemd: %w", err)
	}
	l.passed, l.metricsPassed = len(byName) > 0, len(byName[nameMetrics]) > 0
	for _, name := range slices.Sorted(maps.Keys(byName)) { // "socketmap" is the first listener
		list := byName[name]
		switch {
		case strings.HasPrefix(name, nameSocketmap):
			l.socketmap = append(l.socketmap, list...)
		case name == nameControl && len(list) == 1:
			l.control = list[0]
		case name == nameMetrics:
			l.metrics = append(l.metrics, list...)
		default:
			return l, errors.Join(hint(fmt.Errorf("systemd passed %d sockets named %q", len(list), name),
				"set FileDescriptorName= to %s..., %s (one) or %s in the socket unit", nameSocketmap, nameControl, nameMetrics), l.close())
		}
	}
	for _, s := range slices.Concat(l.socketmap, l.metrics) {
		if ul, ok := s.(*net.UnixListener); ok {
			ul.SetUnlinkOnClose(false) // it is systemd's
		}
	}
	if ul, ok := l.control.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false)
	} else if l.control != nil {
		return l, errors.Join(hint(fmt.Errorf("the socket named %q that systemd passed is %s", nameControl, l.control.Addr().Network()),
			"the control socket is a unix socket: ListenStream=/run/sts-tlsmap/control.sock"), l.close())
	}
	// systemd's variables are not for whatever this process may start.
	os.Unsetenv("LISTEN_FDNAMES")
	return l, nil
}
