package main

import (
	"cmp"
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// This file: what the daemon does while it cannot start. It must not end: the MTA
// would hang at sockets that nobody serves, and systemd would start it in a loop.

const (
	startEvery = time.Second // between two tries to start
	maxReason  = 400         // bytes of a reply
)

// A reason is why the daemon cannot start yet. It answers every lookup.
type reason struct{ atomic.Pointer[string] }

func (r *reason) AppendReply(_ context.Context, dst, _, _ []byte) []byte {
	return append(append(dst, "TEMP "...), *r.Load()...)
}

// hold answers every lookup TEMP with the reason, and every command too, until a try
// to start succeeds, or until a signal (ended) or an error.
func (s *service) hold(signals <-chan os.Signal, file string, why error) (ended bool, err error) {
	if err := s.listen(true); err != nil {
		return false, errors.Join(why, err)
	}
	var r reason
	say := func(err error) {
		next := hintOf(err)
		if !strings.HasSuffix(next, thenRestart) {
			next = cmp.Or(next, "mend that") + "; it is tried again each second"
		}
		first, _, _ := strings.Cut(err.Error(), "\n")
		first = text.Cut(text.Printable(first), maxReason)
		r.Store(&first)
		s.log.Error("the daemon cannot start yet, and answers every lookup TEMP", "err", err, "next", next)
		s.notify(daemon.SdNotifyReady + "\nSTATUS=cannot start yet, every lookup is answered TEMP: " + first)
	}
	say(why)
	lookups := socketmap.NewServer(&r, socketmap.Options{MaxConnections: s.cfg.Socket.MaxConnections, Log: s.log})
	commands := control.NewServer(control.Options{Log: s.log, Refuse: func() string { return *r.Load() }})
	watching, stopWatching := context.WithCancel(context.Background())
	defer func() {
		stopWatching()
		ctx, cancel := context.WithTimeout(context.Background(), socketmap.DrainTimeout)
		defer cancel()
		_ = lookups.Shutdown(ctx)
		_ = commands.Close()
	}()
	for key, serve := range map[string]func(net.Listener) error{keyListen: lookups.Serve, keyControl: commands.Serve} {
		for _, l := range s.listeners[key] {
			l, err := shared(l)
			if err != nil {
				return false, errors.Join(why, err)
			}
			s.serve([]net.Listener{l}, serve)
		}
	}
	go s.watch(watching, func(ctx context.Context) error { return s.probeListeners(ctx, "TEMP ", &r) })

	tick := time.NewTicker(startEvery)
	defer tick.Stop()
	seen := stateOf(file)
	for {
		select {
		case err := <-s.failed:
			return false, errors.Join(why, err)
		case sig := <-signals:
			if sig != syscall.SIGHUP {
				s.log.Info("ending", "signal", sig.String())
				return true, nil
			}
		case <-tick.C:
			// A file that has just changed may not be written to its end.
			if now := stateOf(file); now != seen {
				seen = now
				continue
			}
		}
		err := s.start(file)
		if err == nil {
			s.notify("STATUS=")
			return false, nil
		}
		if err.Error() != why.Error() {
			why = err
			say(why)
		}
	}
}

// stateOf tells a file from what it was before: its size and when it was written.
func stateOf(file string) (state [2]int64) {
	if st, err := os.Stat(cmp.Or(file, config.DefaultPath)); err == nil {
		state = [2]int64{st.Size(), st.ModTime().UnixNano()}
	}
	return state
}

// shared returns another listener at the socket of l. The socket stays open when
// one of them is closed.
func shared(l net.Listener) (net.Listener, error) {
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileListener(f)
}
