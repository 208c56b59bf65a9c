package socketmap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

// Query asks the server at e for key in the map mapName, as an MTA does, and
// returns the reply without its frame. It ends with ctx, and after
// QueryTimeout at the latest.
func Query(ctx context.Context, e endpoint.Endpoint, mapName, key string) (reply string, err error) {
	if mapName == "" || strings.Contains(mapName, " ") {
		return "", fmt.Errorf("ask %s: %q cannot be the name of a map", e, mapName)
	}
	request := mapName + " " + key
	if len(request) > MaxRead {
		return "", fmt.Errorf("ask %s: the request has %d bytes, at most %d are read", e, len(request), MaxRead)
	}
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()

	nc, err := new(net.Dialer).DialContext(ctx, e.Network, e.Address)
	if err != nil {
		return "", queryError(ctx, e, err)
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintf(nc, "%d:%s,", len(request), request); err != nil {
		return "", queryError(ctx, e, err)
	}
	r := bufio.NewReader(nc)
	length, err := readHeader(r, MaxReply)
	var body []byte
	if err == nil {
		body, err = readBody(r, length)
	}
	if err != nil {
		return "", queryError(ctx, e, err)
	}
	return string(body), nil
}

// queryError adds what to do about err.
func queryError(ctx context.Context, e endpoint.Endpoint, err error) error {
	hint := ""
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		hint = "; is the daemon running? See systemctl status sts-tlsmap"
	case errors.Is(err, fs.ErrPermission):
		hint = "; the socket's mode does not let this user in"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		hint = "; the server closed the connection: its log says why"
	case errors.Is(err, errMalformed), errors.Is(err, errTooLong):
		hint = "; is it a socketmap server?"
	}
	return fmt.Errorf("ask %s: %w%s", e, err, hint)
}
