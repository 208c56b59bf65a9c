package observe

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"golang.org/x/net/netutil"

	"github.com/sts-tlsmap/sts-tlsmap/internal/httpserver"
)

// A Server serves a handler at /metrics, and the status page at every other
// path, to whoever can reach its listener. Nothing that a client sends changes
// anything, or has anything looked up.
type Server struct{ http *httpserver.Server }

// NewServer returns a server that does not listen yet. The page may be nil.
func NewServer(metrics, page http.Handler, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	if page != nil {
		mux.Handle("GET /", page)
	}
	// What goes wrong with a connection is the client's, and a client can have
	// it go wrong as often as it likes.
	s := &Server{httpserver.New(mux, log, slog.LevelDebug)}
	s.http.WriteTimeout = writeTimeout
	return s
}

// Serve answers on l until Shutdown, and then returns nil. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(netutil.LimitListener(l, MaxConnections)); err != nil {
		return fmt.Errorf("metrics listener: %w", err)
	}
	return nil
}

// Shutdown stops listening, waits for what is being answered until ctx ends,
// and then closes what is left.
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }
