package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
)

func TestAReadOnlyFileSystemHasAHintOfItsOwn(t *testing.T) {
	cfg := config.Default()
	cfg.Cache.Path = "/srv/mail/cache.db"
	err := cacheError(fmt.Errorf("lock the cache: %w", &fs.PathError{Op: "open", Path: "/srv/mail/cache.db.lock", Err: unix.EROFS}), cfg)
	var h *hinted
	if !errors.As(err, &h) || !strings.Contains(h.hint, "systemctl edit sts-tlsmap") || !strings.Contains(h.hint, "ReadWritePaths=/srv/mail ") {
		t.Errorf("%v: %+v", err, h)
	}
}

func TestCheckSaysWhereTheUnitKeepsTheDaemonFromItsCache(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "cache.db")
	const unit, edit = "usr/lib/systemd/system/sts-tlsmap.service", "etc/systemd/system/sts-tlsmap.service.d/override.conf"
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	packaged := file("[Service]\nProtectSystem=strict\n")
	for _, test := range []struct {
		name   string
		path   string
		root   fstest.MapFS
		access error
		want   string // in the warning; empty: there is none
	}{
		{"no package", path, nil, nil, ""},
		{"no folder", "/nowhere/cache.db", nil, nil, "there is no folder /nowhere"},
		{"read-only", path, nil, unix.EROFS, "is read-only here; where systemd"},
		{"another user's", path, nil, unix.EACCES, ""}, // who checks need not be who writes
		{"the package", path, fstest.MapFS{unit: packaged}, nil, "ReadWritePaths=" + dir},
		{"the package, edited", path, fstest.MapFS{unit: packaged, edit: file("[Service]\nReadWritePaths=-/srv " + dir + "\n")}, nil, ""},
		{"the package, edited above", path, fstest.MapFS{unit: packaged, edit: file("[Service]\nReadWritePaths=" + filepath.Dir(dir) + "\n")}, nil, ""},
		{"edited for another", path, fstest.MapFS{unit: packaged, edit: file("[Service]\nReadWritePaths=" + dir + "x\n")}, nil, "ReadWritePaths="},
		{"edited for something else", path, fstest.MapFS{unit: packaged, edit: file("[Service]\nWatchdogSec=6s\n")}, nil, "ReadWritePaths="},
		{"another protection", path, fstest.MapFS{unit: packaged, edit: file("[Service]\nProtectSystem=full\n")}, nil, ""},
	} {
		cfg := config.Default()
		cfg.File, cfg.Cache.Path = config.DefaultPath, test.path
		got := cacheWarning(cfg, test.root, func(string) error { return test.access })
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q", test.name, got)
		}
	}
	other := config.Default()
	other.File, other.Cache.Path = "/etc/other.toml", path
	if got := cacheWarning(other, fstest.MapFS{unit: packaged}, func(string) error { return nil }); got != "" {
		t.Errorf("a file that the unit does not read: %q", got)
	}
	if isBarred("/var/lib/sts-tlsmap", fstest.MapFS{unit: packaged}) || isBarred("/var/lib/sts-tlsmap/deeper", fstest.MapFS{unit: packaged}) {
		t.Error("the default folder is taken for barred")
	}
}
