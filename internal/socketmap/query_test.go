package socketmap

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

func TestQueryAsksAsAnMTADoes(t *testing.T) {
	l := startLab(t, echo)
	got, err := Query(t.Context(), l.at, "postfix", "[mail.example.com]:587")
	if want := "OK postfix|[mail.example.com]:587"; got != want || err != nil {
		t.Errorf("Query: %q, %v; want %q", got, err, want)
	}
}

func TestQueryReadsTheLongestReply(t *testing.T) {
	l := startLab(t, handlerFunc(func(_ context.Context, dst, _, _ []byte) []byte {
		return append(dst, make([]byte, MaxReply)...)
	}))
	if got, err := Query(t.Context(), l.at, "postfix", "example.com"); len(got) != MaxReply || err != nil {
		t.Errorf("Query: %d bytes, %v; want %d", len(got), err, MaxReply)
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
		{"a request too long to be read", lab.at, "postfix", strings.Repeat("k", MaxRead), "at most 65536 are read"},
		{"no socketmap server", replying(t, "220 mail.example.com ESMTP\r\n"), "postfix", "example.com", "is it a socketmap server?"},
		{"a reply without a comma", replying(t, "9:NOTFOUND ;"), "postfix", "example.com", "is it a socketmap server?"},
		{"a reply too long", replying(t, "100001:"), "postfix", "example.com", "is it a socketmap server?"},
		{"a reply cut short", replying(t, "9:NOT"), "postfix", "example.com", "its log says why"},
		{"no reply", replying(t, ""), "postfix", "example.com", "its log says why"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Query(t.Context(), test.at, test.mapName, test.key)
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
		_, err := Query(ctx, l.at, "postfix", "slow.example")
		ended <- err
	}()
	receive(t, "the lookup begins", arrived)
	cancel()
	if err := receive(t, "the query ends", ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Query: %v, want the context's error", err)
	}
}

func TestAQueryEndsByItselfWhenPostfixWouldGiveUp(t *testing.T) {
	for name, silent := range map[string]dialFunc{
		"no connection": func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"no reply": func(ctx context.Context, _, _ string) (net.Conn, error) {
			client, server := net.Pipe()
			go io.Copy(io.Discard, server)
			return client, nil
		},
		"a request that is not taken": func(ctx context.Context, _, _ string) (net.Conn, error) {
			client, _ := net.Pipe()
			return client, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				_, err := query(t.Context(), silent, endpoint.Endpoint{Network: "unix", Address: "silent"}, "postfix", "example.com")
				if took := time.Since(begun); took != QueryTimeout || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v after %v, want the end after %v", err, took, QueryTimeout)
				}
			})
		})
	}
}
