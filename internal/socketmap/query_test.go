package socketmap_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

func TestQueryAsksAsAnMTADoes(t *testing.T) {
	l := startLab(t, echo)
	got, err := socketmap.Query(t.Context(), l.at, "postfix", "[mail.example.com]:587")
	if want := "OK postfix|[mail.example.com]:587"; got != want || err != nil {
		t.Errorf("Query: %q, %v; want %q", got, err, want)
	}
}

func TestQueryReadsTheLongestReply(t *testing.T) {
	l := startLab(t, handlerFunc(func(_ context.Context, dst, _, _ []byte) []byte {
		return append(dst, make([]byte, socketmap.MaxReply)...)
	}))
	if got, err := socketmap.Query(t.Context(), l.at, "postfix", "example.com"); len(got) != socketmap.MaxReply || err != nil {
		t.Errorf("Query: %d bytes, %v; want %d", len(got), err, socketmap.MaxReply)
	}
}

func TestAQueryErrorSaysWhatToDo(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	nobody := endpoint.Endpoint{Network: "tcp", Address: closed.Addr().String()}
	lab := startLab(t, echo)
	for _, test := range []struct {
		name         string
		at           endpoint.Endpoint
		mapName, key string
		hint         string
	}{
		{"nobody listens", nobody, "postfix", "example.com", "is the daemon running?"},
		{"no socket", endpoint.Endpoint{Network: "unix", Address: filepath.Join(t.TempDir(), "none")}, "postfix", "example.com", "is the daemon running?"},
		{"no map", lab.at, "", "example.com", "cannot be the name of a map"},
		{"a map with a space", lab.at, "post fix", "example.com", "cannot be the name of a map"},
		{"a request too long to be read", lab.at, "postfix", strings.Repeat("k", socketmap.MaxRead), "at most 65536 are read"},
		{"no socketmap server", replying(t, "220 mail.example.com ESMTP\r\n"), "postfix", "example.com", "is it a socketmap server?"},
		{"a reply without a comma", replying(t, "9:NOTFOUND ;"), "postfix", "example.com", "is it a socketmap server?"},
		{"a reply too long", replying(t, "100001:"), "postfix", "example.com", "is it a socketmap server?"},
		{"a reply cut short", replying(t, "9:NOT"), "postfix", "example.com", "its log says why"},
		{"no reply", replying(t, ""), "postfix", "example.com", "its log says why"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := socketmap.Query(t.Context(), test.at, test.mapName, test.key)
			if err == nil || !strings.Contains(err.Error(), test.hint) {
				t.Errorf("Query: %q, %v; want %q", got, err, test.hint)
			}
		})
	}
}

// replying is a server that reads something, sends these bytes and closes.
func replying(t *testing.T, reply string) endpoint.Endpoint {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		nc.Read(make([]byte, 1000))
		nc.Write([]byte(reply))
	}()
	return endpoint.Endpoint{Network: "tcp", Address: l.Addr().String()}
}

func TestAQueryEndsWithItsContext(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	l := startLab(t, slowHandler(arrived, goOn))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := socketmap.Query(ctx, l.at, "postfix", "slow.example")
		ended <- err
	}()
	receive(t, "the lookup begins", arrived)
	cancel()
	if err := receive(t, "the query ends", ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Query: %v, want the context's error", err)
	}
}
