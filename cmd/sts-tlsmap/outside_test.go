//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

func TestAnUnreadableCAFileIsNamedWithItsKey(t *testing.T) {
	ca, err := testlab.NewCA("roots")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pem, file := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "f.toml")
	if err := errors.Join(ca.WritePEM(pem), os.Chmod(pem, 0), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		_ = unix.Setfsuid(65534)
		cfg, err := config.Parse(file, []byte("[fetch]\nca_file = \"ca.pem\"\n"))
		if err != nil {
			t.Errorf("who needs no certificates is held up by them: %v", err)
		} else {
			_, err = newOutside(cfg, nil, nil)
		}
		done <- err
	}()
	err = <-done
	var h *hinted
	if !errors.As(err, &h) || !strings.HasPrefix(err.Error(), file+":2: fetch.ca_file: ") || strings.Contains(h.hint, "ca-certificates") {
		t.Errorf("got %v: %+v", err, h)
	}
}
