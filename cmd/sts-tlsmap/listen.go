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
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

// Names of the sockets that systemd passes (FileDescriptorName=). Those of
// the socketmap begin with their word: "socketmap", "socketmap-chroot".
const (
	nameSocketmap = "socketmap"
	nameControl   = "control"
	nameMetrics   = "metrics"
)

// listeners are the open sockets.
type listeners struct {
	socketmap []net.Listener
	control   net.Listener
	metrics   []net.Listener // none: not served but on the control socket
}

// names returns the socketmap's endpoints as they are, in Postfix's syntax.
func (l *listeners) names() []string {
	names := make([]string, len(l.socketmap))
	for i, s := range l.socketmap {
		names[i] = endpointOf(s.Addr()).String()
	}
	return names
}

// metricsNames returns the endpoints of the metrics likewise.
func (l *listeners) metricsNames() []string {
	names := make([]string, len(l.metrics))
	for i, s := range l.metrics {
		names[i] = endpointOf(s.Addr()).String()
	}
	return names
}

func endpointOf(a net.Addr) socketmap.Endpoint {
	return socketmap.Endpoint{Network: a.Network(), Address: a.String()}
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
// passed in their place.
func (s *service) listen() error {
	passed, err := passedListeners()
	if err != nil {
		return err
	}
	l := &s.listeners
	l.socketmap, l.control, l.metrics = passed.socketmap, passed.control, passed.metrics
	if len(l.socketmap) == 0 {
		for _, e := range s.cfg.Listen {
			endpoint, err := socketmap.ParseEndpoint(e.String())
			if err != nil {
				return errors.Join(err, l.close())
			}
			opened, err := socketmap.Listen(endpoint, s.cfg.Socket.Mode)
			if err != nil {
				return errors.Join(err, l.close())
			}
			l.socketmap = append(l.socketmap, opened)
		}
	}
	if l.control == nil {
		if l.control, err = control.Listen(s.cfg.Control.Address); err != nil {
			return errors.Join(err, l.close())
		}
	}
	if len(l.metrics) == 0 && s.cfg.Metrics.Network != "" {
		endpoint, err := socketmap.ParseEndpoint(s.cfg.Metrics.String())
		if err != nil {
			return errors.Join(err, l.close())
		}
		opened, err := socketmap.Listen(endpoint, s.cfg.Socket.Mode)
		if err != nil {
			return errors.Join(fmt.Errorf("metrics: %w", err), l.close())
		}
		l.metrics = append(l.metrics, opened)
	}
	return nil
}

// passedListeners returns what systemd passed, by name (sd_listen_fds(3)).
func passedListeners() (listeners, error) {
	var l listeners
	byName, err := activation.ListenersWithNames()
	if err != nil {
		return l, fmt.Errorf("sockets passed by systemd: %w", err)
	}
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
