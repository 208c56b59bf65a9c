//go:build e2e

package durable

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// The daemon looks at its cache's path once a minute.
const lookTime = 90 * time.Second

var folder = filepath.Dir(stage.CacheFile)

func awaitLog(t *testing.T, d *stage.Daemon, words string, times int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lookTime)
	defer cancel()
	if err := stage.Await(ctx, func() bool { return strings.Count(d.Log(), words) >= times }); err != nil {
		t.Fatalf("not in the log within %s: %s", lookTime, words)
	}
}

func mustHold(t *testing.T, domain string) {
	t.Helper()
	if reply, err := socketmap.Query(t.Context(), daemonAt, "postfix", domain); err != nil || !strings.HasPrefix(reply, "OK secure match=mx1."+domain) {
		t.Errorf("the reply for %s is %q (%v)", domain, reply, err)
	}
}

func try(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// startsWithoutDisk starts the daemon for the first time where its cache cannot be
// written. Lookups are answered; once the path can be written, policies are on disk.
func startsWithoutDisk(t *testing.T, spoil, mend func(t *testing.T)) {
	lab := stage.NewLab(t)
	startsInMemory(t, lab, newDaemon(t, lab), spoil, mend)
}

func startsInMemory(t *testing.T, lab *testlab.T, d *stage.Daemon, spoil, mend func(t *testing.T)) {
	one := lab.Domain("one.test", testlab.With{})
	spoil(t)
	d.Start(t)
	mustHold(t, one.Name)
	if log := d.Log(); strings.Count(log, "level=ERROR msg=\"the cache file cannot be written; policies are kept in memory") != 1 {
		t.Error("the log does not say once that the cache cannot be written")
	}
	if out, words, _, err := d.Daemon.Run(t.Context(), "-check"); !strings.Contains(out+words, "the cache is in memory only (") {
		t.Errorf("-check: %v\n%s%s", err, out, words)
	}
	mend(t)
	awaitLog(t, d, `msg="the cache is on disk again"`, 1)
	d.Stop(t)

	one.RemoveRecord()
	d.Start(t)
	mustHold(t, one.Name)
}

func TestTheDaemonStartsOnAReadOnlyFileSystem(t *testing.T) {
	startsWithoutDisk(t, func(t *testing.T) {
		try(t, unix.Mount("e2e", folder, "tmpfs", unix.MS_RDONLY, ""))
	}, func(t *testing.T) {
		try(t, unix.Mount("", folder, "", unix.MS_REMOUNT, ""))
	})
}

func TestTheDaemonStartsOnAFullDisk(t *testing.T) {
	filler := filepath.Join(folder, "filler")
	startsWithoutDisk(t, func(t *testing.T) {
		try(t, unix.Mount("e2e", folder, "tmpfs", 0, "size=1m"))
		if err := os.WriteFile(filler, bytes.Repeat([]byte("x"), 2<<20), 0o600); err == nil {
			t.Fatal("the disk does not become full")
		}
	}, func(t *testing.T) { try(t, os.Remove(filler)) })
}

func TestTheDaemonStartsOnADiskThatTheFirstPagesFill(t *testing.T) {
	filler := filepath.Join(folder, "filler")
	startsWithoutDisk(t, func(t *testing.T) {
		try(t, unix.Mount("e2e", folder, "tmpfs", 0, "size=1m"),
			os.WriteFile(filler, bytes.Repeat([]byte("x"), 1<<20-3*os.Getpagesize()), 0o600))
	}, func(t *testing.T) { try(t, os.Remove(filler)) })
}

func TestTheDaemonStartsWithoutTheFolder(t *testing.T) {
	startsWithoutDisk(t, func(t *testing.T) { try(t, os.Remove(folder)) }, func(t *testing.T) { try(t, os.Mkdir(folder, 0o700)) })
}

func TestTheDaemonStartsOnALinkThatLeadsNowhere(t *testing.T) {
	target := stage.Path("data/cache.db")
	startsWithoutDisk(t, func(t *testing.T) { try(t, os.Symlink(target, stage.CacheFile)) }, func(t *testing.T) { try(t, os.Mkdir(filepath.Dir(target), 0o700)) })
	if info, err := os.Lstat(target); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%s: %v", target, err)
	}
}

func TestTheDaemonStartsWhereItsUserMayNotWrite(t *testing.T) {
	lab := stage.NewLab(t)
	d := newDaemon(t, lab)
	runAs(t, d, 4711)
	startsInMemory(t, lab, d, func(t *testing.T) { try(t, os.Chmod(folder, 0o755)) }, func(t *testing.T) { try(t, os.Chown(folder, 4711, 4711)) })
}

// runAs has the daemon run as a user who owns its files but not the cache.
func runAs(t *testing.T, d *stage.Daemon, user int) {
	t.Helper()
	log, err := os.OpenFile(d.LogFile, os.O_CREATE|os.O_APPEND, 0o644)
	try(t, err, log.Close(), os.Chown(d.LogFile, user, user), os.Chown(filepath.Dir(d.Control), user, user))
	d.Tweak = func(c *exec.Cmd) {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(user), Gid: uint32(user)}}
	}
}

// An administrator starts the daemon by hand to see what is wrong.
func TestAStartByRootOnADamagedFileLeavesACacheThatTheServiceCanUse(t *testing.T) {
	const user = 4711
	lab := stage.NewLab(t)
	one := lab.Domain("one.test", testlab.With{})
	d := newDaemon(t, lab)
	try(t, os.WriteFile(stage.CacheFile, bytes.Repeat([]byte("no cache"), 10_000), 0o600),
		os.Chown(folder, user, user), os.Chown(stage.CacheFile, user, user))
	d.Start(t)
	mustHold(t, one.Name)
	d.Stop(t)
	if log := d.Log(); strings.Count(log, "it was set aside") != 1 {
		t.Error("the damaged file was not set aside")
	}

	one.RemoveRecord()
	runAs(t, d, user)
	d.Start(t)
	mustHold(t, one.Name)
	d.Stop(t)
	if log := d.Log(); strings.Count(log, "it was set aside") != 1 || strings.Contains(log, "cannot be written") {
		t.Error("the service cannot use the file that root made")
	}
}

func TestACacheRemovedOrReplacedUnderTheDaemonIsMadeAgain(t *testing.T) {
	lab := stage.NewLab(t)
	first, second := lab.Domain("first.test", testlab.With{}), lab.Domain("second.test", testlab.With{})
	d := newDaemon(t, lab)
	d.Start(t)
	mustHold(t, first.Name)
	d.Stop(t)
	old, err := os.ReadFile(stage.CacheFile)
	try(t, err)
	d.Start(t)
	mustHold(t, second.Name)

	try(t, os.Remove(stage.CacheFile))
	awaitLog(t, d, `msg="the cache is on disk again"`, 1)
	try(t, os.WriteFile(stage.CacheFile+".old", old, 0o600), os.Rename(stage.CacheFile+".old", stage.CacheFile))
	awaitLog(t, d, `msg="the cache is on disk again"`, 2)
	awaitLog(t, d, `level=ERROR msg="the cache file was removed or replaced while the daemon had it open"`, 2)
	d.Kill(t)

	first.RemoveRecord()
	second.RemoveRecord()
	d.Start(t)
	mustHold(t, first.Name)
	mustHold(t, second.Name)
}
