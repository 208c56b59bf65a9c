//go:build e2e

package prometheus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/observe"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// TestEachTroubleIsToldByLogMetricAlertAndCheck brings the real daemon into the
// conditions that do not take hours. keeper's tests have the others: no success
// at all, and a late refresher.
func TestEachTroubleIsToldByLogMetricAlertAndCheck(t *testing.T) {
	for _, test := range []struct {
		condition, alert, line string
		before, after          func(*testing.T) // the start of the daemon
	}{
		{observe.Salvage, "StsTlsmapCacheSalvaged", "it was set aside, and its enforced policies are carried over", zeroCache, nil},
		{observe.Clock, "StsTlsmapClock", "condition=clock", cacheFromTomorrow, nil},
		{observe.Roots, "StsTlsmapNoRoots", "condition=roots", nil, removeRoots},
		{observe.Writes, "StsTlsmapCannotWrite", "cannot write to the cache", nil, fillDisk},
	} {
		t.Run(test.condition, func(t *testing.T) {
			smallDisk(t)
			lab := stage.NewLab(t)
			// A long policy does not fit into the pages that a new file has free.
			long := testlab.PolicyText("enforce", 24*time.Hour, "mx1.enforced.test") + strings.Repeat("x: "+strings.Repeat("y", 100)+"\n", 500)
			lab.Domain("enforced.test", testlab.With{Policy: long})
			lab.Domain("broken.test", testlab.With{PolicyCert: testlab.CertExpired})
			d := stage.NewDaemon(t, config(t, lab))
			if test.before != nil {
				test.before(t)
			}
			d.Start(t)
			startPrometheus(t)
			if test.after != nil {
				test.after(t)
				ask(t)
			}
			// Alerts with a duration are pending first. On a busy machine a
			// scrape may take longer than the interval of a second, which
			// causes StsTlsmapDown.
			const notAtAll = `ALERTS{alertname!="StsTlsmapDown"}`
			wanted := fmt.Sprintf(`ALERTS{alertname=%q,condition=%q}`, test.alert, test.condition)
			await(t, wanted, func() bool { return len(query(t, wanted)) > 0 })
			if alerts := query(t, notAtAll); len(alerts) != 1 {
				t.Errorf("alerts: %v; want only %s", alerts, test.alert)
			}
			h, err := control.NewClient(d.Control).Health(t.Context())
			if err != nil || len(h.Troubles) != 1 || h.Troubles[0].Condition != test.condition {
				t.Errorf("conditions: %+v, %v", h.Troubles, err)
			}
			said := false
			for line := range strings.Lines(d.Log()) {
				said = said || strings.Contains(line, "level=ERROR") && strings.Contains(line, test.line)
			}
			if !said {
				t.Errorf("the log has no error with %q", test.line)
			}
		})
	}
}

// smallDisk puts the cache on a small file system.
func smallDisk(t *testing.T) {
	t.Helper()
	dir := filepath.Dir(stage.CacheFile)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func fillDisk(t *testing.T) {
	full := filepath.Join(filepath.Dir(stage.CacheFile), "full")
	if err := os.WriteFile(full, make([]byte, 8<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	// So that the daemon can stop: it writes what is queued.
	t.Cleanup(func() { os.Remove(full) })
}

func zeroCache(t *testing.T) {
	if err := os.WriteFile(stage.CacheFile, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
}

func removeRoots(t *testing.T) {
	if err := os.Remove(stage.Path("lab.pem")); err != nil {
		t.Fatal(err)
	}
}

// cacheFromTomorrow leaves a cache written while the clock was ahead.
func cacheFromTomorrow(t *testing.T) {
	tomorrow := time.Now().Add(24 * time.Hour)
	s, err := cache.Open(stage.CacheFile, cache.Options{Now: func() time.Time { return tomorrow }})
	if err != nil {
		t.Fatal(err)
	}
	text := testlab.PolicyText("enforce", 7*24*time.Hour, "mx.ahead.test")
	_, err = s.Write([]cache.Op{{Put: &cache.Record{
		Domain: "ahead.test", Mode: policy.ModeEnforce, ID: "1", Text: []byte(text),
		Fetched: tomorrow, Checked: tomorrow, Used: tomorrow, Expires: tomorrow.Add(7 * 24 * time.Hour), Due: tomorrow.Add(time.Hour),
	}}})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
}
