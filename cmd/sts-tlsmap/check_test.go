package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// TestCheckShowsEachTroubleOfTheDaemonAndWhatToDo runs -check against a control
// socket whose daemon has the signs of each condition. Those that can be brought
// about in seconds are in testdata/trouble.txt, with the real daemon; the others
// take minutes or hours.
func TestCheckShowsEachTroubleOfTheDaemonAndWhatToDo(t *testing.T) {
	now := time.Now()
	var shown []string
	defer func() {
		if want := observe.Conditions(); !slices.Equal(shown, want) {
			t.Errorf("shown are %q, there are %q", shown, want)
		}
	}()
	for _, test := range []struct {
		condition  string
		signs      observe.Signs
		what, next string
	}{
		{observe.Discovery, observe.Signs{Keeper: keeper.Stats{FetchDead: true}},
			"no policy fetch has succeeded for some minutes", "port 443"},
		{observe.Roots, observe.Signs{Keeper: keeper.Stats{FetchDead: true, Untrusted: true}},
			"no policy host's certificate has been trusted", "ca-certificates"},
		{observe.Resolver, observe.Signs{Keeper: keeper.Stats{DNSDead: true}},
			"no TXT lookup has succeeded for some minutes", "/etc/resolv.conf"},
		{observe.Clock, observe.Signs{Cache: cache.Stats{Newest: now.Add(time.Hour)}},
			"before the newest record of the cache", "set the clock"},
		{observe.Refresher, observe.Signs{Keeper: keeper.Stats{LateSeconds: 7200}},
			"the refresher is 2h0m0s late", "raise fetch_rate"},
		{observe.Writes, observe.Signs{Keeper: keeper.Stats{Failing: true}},
			"the cache cannot be written to", "whether the disk is full"},
		{observe.Salvage, observe.Signs{Cache: cache.Stats{Salvage: &cache.Report{Recovered: 7, Lost: 2}}},
			"the cache was damaged", "the disk and the memory"},
		{observe.Validation, observe.Signs{DANE: dane.Stats{Kept: 3, Verdict: dane.NoAD}},
			"3 next-hops keep the DANE that they had", "run a resolver on this machine that validates"},
	} {
		shown = append(shown, test.condition)
		t.Run(test.condition, func(t *testing.T) {
			dir, file := writeConfig(t, testlab.New(t))
			l, err := control.Listen(filepath.Join(dir, "control.sock"))
			if err != nil {
				t.Fatal(err)
			}
			test.signs.Now = now
			server := control.NewServer(control.Options{Health: func() control.Health {
				return control.Health{Troubles: test.signs.Troubles()}
			}})
			served := make(chan error, 1)
			go func() { served <- server.Serve(l) }()
			defer func() {
				if err := server.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				if err := <-served; err != nil {
					t.Error(err)
				}
			}()
			stderr, err := os.Create(filepath.Join(dir, "stderr"))
			if err != nil {
				t.Fatal(err)
			}
			defer stderr.Close()
			var stdout bytes.Buffer
			if code := run([]string{"-check", "-config", file}, &stdout, stderr); code != exitDone {
				t.Errorf("exit %d", code)
			}
			said, err := os.ReadFile(stderr.Name())
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(said)), "\n")
			if len(lines) != 1 || !strings.HasPrefix(lines[0], "sts-tlsmap: warning: the daemon: ") ||
				!strings.Contains(lines[0], test.what) || !strings.Contains(lines[0], test.next) {
				t.Errorf("it says\n%s\nwant %q and %q", said, test.what, test.next)
			}
		})
	}
}
