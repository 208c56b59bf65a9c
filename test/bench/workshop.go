package main

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
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
		program: sync.OnceValues(func() (string, error) { return testlab.BuildDaemon(ctx, dir) }),
		million: sync.OnceValues(openMillion),
	}, nil
}

func (w *workshop) close() error { return os.RemoveAll(w.dir) }

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
