package main

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// A workshop has what the rows of one run share, created on first use.
type workshop struct {
	dir     string // removed after the run
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
		program: sync.OnceValues(func() (string, error) { return testlab.BuildDaemon(ctx, dir) }),
		million: sync.OnceValues(openMillion),
	}, nil
}

// tail returns the end of a log.
func tail(log string) string { return log[max(0, len(log)-2000):] }

func (w *workshop) close() error { return os.RemoveAll(w.dir) }

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
