// Package httpserver is what the control socket's HTTP server and that of the
// metrics have in common: a client's request arrives within a time and a size,
// and the server ends in good order. How long a client may take to read the
// answer, and how many are served at once, each says for itself.
package httpserver

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	requestTimeout = 10 * time.Second // for a request to arrive, with its body
	idleTimeout    = time.Minute      // without a request

	// MaxHeader bounds a request's header, in bytes.
	MaxHeader = 16 << 10
)

// A Server is an http.Server within these limits.
type Server struct{ http.Server }

// New returns a server that does not listen yet. What goes wrong with a
// connection is logged at the level.
func New(h http.Handler, log *slog.Logger, level slog.Level) *Server {
	return &Server{http.Server{
		Handler:           h,
		ReadHeaderTimeout: requestTimeout,
		ReadTimeout:       requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    MaxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), level),
	}}
}

// Serve answers on l until Shutdown, and then returns nil. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.Server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown stops listening, waits for what is being answered until ctx ends,
// and then closes what is left.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.Server.Shutdown(ctx); err != nil {
		return s.Close()
	}
	return nil
}
