package socketmap_test

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

// A fullListener accepts nothing until it is closed, as if the server had no time.
type fullListener struct {
	*net.TCPListener
	entered, closed chan struct{}
}

func (l fullListener) Accept() (net.Conn, error) {
	close(l.entered)
	<-l.closed
	return nil, net.ErrClosed
}

func TestTheKernelHoldsLittleOfAConnectionThatWaitsToBeAccepted(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := fullListener{tcp.(*net.TCPListener), make(chan struct{}), make(chan struct{})}
	s := socketmap.NewServer(echo, socketmap.Options{MaxConnections: 10})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	receive(t, "the server accepts", l.entered)
	client, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for err == nil {
		client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		_, err = io.WriteString(client, strings.Repeat(request("postfix", "example.com"), 100))
	}
	nc, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	raw, err := nc.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	held := 0
	raw.Control(func(fd uintptr) { held, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil || held == 0 || held > 48<<10 {
		t.Errorf("%d bytes are held (%v)", held, err)
	}
	close(l.closed)
	receive(t, "Serve returns", served)
	s.Shutdown(context.Background())
}
