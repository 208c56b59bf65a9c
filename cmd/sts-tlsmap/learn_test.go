package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

func TestAnInterruptedLearnSaysThatItCanBeRunAgain(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "control.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var answers atomic.Int32 // of domains, before the daemon is gone
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, `{"version":"x"}`) })
	mux.HandleFunc("POST /v1/learn", func(w http.ResponseWriter, _ *http.Request) {
		for i := range answers.Load() {
			fmt.Fprintf(w, `{"domain":"d%d.test","result":"ok","mode":"enforce"}`+"\n", i)
		}
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	defer server.Close()
	list, config := filepath.Join(dir, "list"), filepath.Join(dir, "c.toml")
	for name, text := range map[string]string{list: "d0.test\nd1.test\n", config: "control = \"unix:" + socket + "\"\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for answered := range 2 {
		answers.Store(int32(answered))
		stderr, err := os.Create(filepath.Join(dir, "stderr"))
		if err != nil {
			t.Fatal(err)
		}
		defer stderr.Close()
		var stdout bytes.Buffer
		if code := run([]string{"-learn", list, "-config", config}, &stdout, stderr); code != exitFailed {
			t.Errorf("exit %d", code)
		}
		said, err := os.ReadFile(stderr.Name())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(said), "hint: run the same again"); got != (answered > 0) || !strings.Contains(string(said), "broke off") {
			t.Errorf("after %d answers: %s", answered, said)
		}
		if want := fmt.Sprintf("policies: %d found", answered); !strings.Contains(stdout.String(), want) {
			t.Errorf("after %d answers: %s", answered, &stdout)
		}
	}
}

func TestALineTooLongToLearnIsNamed(t *testing.T) {
	l := &learning{in: io.NopCloser(strings.NewReader("one.test\n" + strings.Repeat("x", maxLearnLine+1))), name: "list", seen: make(map[string]bool)}
	for e := range l.policies() {
		t.Errorf("got %+v", e)
	}
	if l.err == nil || !strings.Contains(l.err.Error(), "list:2: a line of more than 4194304 bytes") {
		t.Error(l.err)
	}
}
