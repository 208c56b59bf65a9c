package main

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// Which conditions there are, and when, is tested in internal/observe. Those that
// can be brought about in seconds are in testdata/trouble.txt, with the real daemon.
func TestCheckShowsTheConditionsOfTheDaemonAndWhatToDo(t *testing.T) {
	dir, file := writeConfig(t, testlab.New(t), testlab.DaemonConfig{})
	l, err := control.Listen(filepath.Join(dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := control.NewServer(control.Options{Log: slog.New(slog.DiscardHandler), Health: func() control.Health {
		return control.Health{Troubles: []control.Trouble{
			{Condition: observe.Discovery, Severity: observe.Page, What: "no fetch succeeds", Next: "see whether"},
			{Condition: observe.Salvage, Severity: observe.Ticket, What: "the file was damaged", Next: "look at the disk"},
		}}
	}})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		if err := server.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	stderr, err := os.Create(filepath.Join(dir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	if code := run([]string{"-check", "-config", file}, new(bytes.Buffer), stderr); code != exitDone {
		t.Errorf("exit %d", code)
	}
	const want = "sts-tlsmap: warning: the daemon: no fetch succeeds; see whether\n" +
		"sts-tlsmap: warning: the daemon: the file was damaged; look at the disk\n"
	if said, err := os.ReadFile(stderr.Name()); err != nil || string(said) != want {
		t.Errorf("got %s, %v, want %s", said, err, want)
	}
}
