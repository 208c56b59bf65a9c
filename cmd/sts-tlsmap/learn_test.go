package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheBarOfALearningSaysHowFarItIsAndIsForTerminalsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := progress{w: &out, shown: true}
		p.step() // before it begins, there is none
		p.begin(4)
		time.Sleep(2 * time.Second)
		p.step()
		if want := "\r\x1b[K[#######.......................] 1 of 4, 6s left"; out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
		p.step() // too soon to be drawn
		if strings.Contains(out.String(), "2 of 4") {
			t.Errorf("it is drawn for each: %q", out.String())
		}
		p.step()
		p.step()
		p.end()
		if !strings.HasSuffix(out.String(), "] 4 of 4, 0s left\n") {
			t.Errorf("%q", out.String())
		}
		// In a file whose end is known, and where it is not.
		out.Reset()
		p = progress{w: &out, shown: true}
		p.begin(1000)
		time.Sleep(time.Second)
		p.at(500, "7 policies")
		if want := "\r\x1b[K[###############...............] 7 policies, 1s left"; out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
		out.Reset()
		p.begin(0)
		time.Sleep(time.Second)
		p.at(500, "7 policies")
		if want := "\r\x1b[K7 policies"; out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
		out.Reset()
		p = progress{w: &out}
		p.begin(1)
		p.step()
		p.clear()
		p.end()
		if out.Len() > 0 {
			t.Errorf("without a terminal: %q", out.String())
		}
	})
}

func TestALearningThatIsCutShortSaysThatItCanBeRunAgain(t *testing.T) {
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
		if want := fmt.Sprintf("%d policies found", answered); !strings.Contains(stdout.String(), want) {
			t.Errorf("after %d answers: %s", answered, &stdout)
		}
	}
}

func TestALineTooLongToLearnIsNamed(t *testing.T) {
	l := &learning{in: strings.NewReader("one.test\n" + strings.Repeat("x", maxLearnLine+1)), name: "list", seen: make(map[string]bool)}
	for e := range l.policies() {
		t.Errorf("got %+v", e)
	}
	if l.err == nil || !strings.Contains(l.err.Error(), "list:2: a line of more than 4194304 bytes") {
		t.Error(l.err)
	}
}
