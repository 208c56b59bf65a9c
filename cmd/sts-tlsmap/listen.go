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

// Names of the sockets that systemd passes (FileDescriptorName=). Those for
// lookups begin with their word: "socketmap", "socketmap-chroot".
const (
	nameSocketmap = "socketmap"
	nameControl   = "control"
	nameMetrics   = "metrics"
)

// listeners are the open sockets.
type listeners struct {
	socketmap  []net.Listener
	control    []net.Listener // at most one; none: systemd was told to pass none
	metrics    []net.Listener // none: served on the control socket only
	overridden []string       // keys of the configuration in whose place systemd passed sockets
}

func names(list []net.Listener) []string {
	names := make([]string, len(list))
	for i, l := range list {
		names[i] = endpoint.Of(l.Addr()).String()
	}
	return names
}

// controlPath is the path of the control socket; empty: there is none.
func (l *listeners) controlPath() string {
	for _, c := range l.control {
		return c.Addr().String()
	}
	return ""
}

func (l *listeners) sockets() sockets {
	return sockets{keyListen: names(l.socketmap), keyControl: {l.controlPath()}, keyMetrics: names(l.metrics)}
}

func (l *listeners) close() (err error) {
	for _, s := range slices.Concat(l.socketmap, l.control, l.metrics) {
		err = errors.Join(err, s.Close())
	}
	return err
}

// listen opens the sockets of the configuration, or takes those that systemd
// passed. Where it passed any, the others are masked or stopped, and none is
// opened in their place: the file system may be read-only for this process, and
// a socket of its own would end with it. The metrics are another matter: their
// socket unit is off unless somebody wants it, and the key may be used instead.
func (s *service) listen() error {
	l := &s.listeners
	err := l.takePassed()
	switch {
	case err != nil:
	case len(l.overridden) == 0:
		err = s.listenItself()
	case len(l.socketmap) == 0:
		err = hint(errors.New("systemd passed no socket for lookups"),
			"unmask one of them, or free its port, and start anew: systemctl unmask sts-tlsmap.socket; systemctl restart sts-tlsmap")
	}
	if err == nil && len(l.metrics) == 0 && s.cfg.Metrics.Network != "" {
		if err = open(&l.metrics, s.cfg.Metrics, s.cfg.Socket.Mode); err != nil {
			err = fmt.Errorf("metrics: %w", err)
		}
	}
	if err != nil {
		return errors.Join(err, l.close())
	}
	return nil
}

// listenItself opens the sockets for lookups and control.
func (s *service) listenItself() error {
	for _, e := range s.cfg.Listen {
		if err := open(&s.listeners.socketmap, e, s.cfg.Socket.Mode); err != nil {
			return err
		}
	}
	opened, err := control.Listen(s.cfg.Control.Address)
	if err == nil {
		s.listeners.control = []net.Listener{opened}
	}
	return err
}

// open adds a listener to a list.
func open(list *[]net.Listener, e endpoint.Endpoint, mode os.FileMode) error {
	l, err := endpoint.Listen(e, mode)
	if err == nil {
		*list = append(*list, l)
	}
	return err
}

// takePassed takes what systemd passed, by name (sd_listen_fds(3)).
func (l *listeners) takePassed() error {
	byName, err := activation.ListenersWithNames()
	if err != nil {
		return fmt.Errorf("sockets passed by systemd: %w", err)
	}
	if len(byName) > 0 {
		l.overridden = []string{keyListen, keyControl}
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) { // "socketmap" is the first listener
		list := byName[name]
		for _, passed := range list {
			if u, ok := passed.(*net.UnixListener); ok {
				u.SetUnlinkOnClose(false) // it is systemd's
			}
		}
		switch {
		case strings.HasPrefix(name, nameSocketmap):
			l.socketmap = append(l.socketmap, list...)
		case name == nameMetrics:
			l.metrics = list
			l.overridden = append(l.overridden, keyMetrics)
		case name == nameControl && len(list) == 1:
			l.control = list
			if network := list[0].Addr().Network(); network != "unix" {
				return hint(fmt.Errorf("the socket named %q that systemd passed is %s", nameControl, network),
					"the control socket is a unix socket: ListenStream=/run/sts-tlsmap/control.sock")
			}
		default:
			return hint(fmt.Errorf("systemd passed %d sockets named %q", len(list), name),
				"set FileDescriptorName= to %s..., %s (one) or %s in the socket unit", nameSocketmap, nameControl, nameMetrics)
		}
	}
	os.Unsetenv("LISTEN_FDNAMES") // not for whatever this process may start
	return nil
}
