package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// A workshop is what the rows of one run share. What is in it is made when the
// first row asks for it.
type workshop struct {
	dir     string // for files that go with the run
	program func() (path string, err error)
	million func() (*million, error)
}

func newWorkshop(ctx context.Context) (*workshop, error) {
	dir, err := os.MkdirTemp("", "sts-tlsmap-bench-")
	if err != nil {
		return nil, err
	}
	return &workshop{
		dir:     dir,
		program: sync.OnceValues(func() (string, error) { return buildProgram(ctx, dir) }),
		million: sync.OnceValues(openMillion),
	}, nil
}

func (w *workshop) close() error { return os.RemoveAll(w.dir) }

// buildProgram builds the program as make build does.
func buildProgram(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "sts-tlsmap")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path,
		"github.com/sts-tlsmap/sts-tlsmap/cmd/sts-tlsmap")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the program: %w\n%s", err, out)
	}
	return path, nil
}

// copyFile copies the file from to the file to.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
