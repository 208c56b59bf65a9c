package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
)

// The packages' unit lets the daemon write to the folder of the default cache
// and nowhere else (StateDirectory=, ProtectSystem=strict). Elsewhere the file
// system is read-only for it, whoever owns the folder.

// letWrite says how the daemon gets a folder to write to.
func letWrite(dir string) string {
	return fmt.Sprintf("where systemd runs the daemon, let it write there: systemctl edit sts-tlsmap, with "+
		"[Service] and ReadWritePaths=%s below it; the folder must belong to its user", dir)
}

// where the unit and what changes it are, below /.
var (
	unitFiles = []string{"usr/lib/systemd/system/sts-tlsmap.service", "lib/systemd/system/sts-tlsmap.service"}
	unitEdits = []string{
		"etc/systemd/system/sts-tlsmap.service", "etc/systemd/system/sts-tlsmap.service.d/*.conf", "run/systemd/system/sts-tlsmap.service.d/*.conf",
	}
)

// cacheWarning says why the daemon will not be able to write its cache, as far
// as that shows without writing: empty if nothing speaks against it. root is /,
// and access access(2).
func cacheWarning(cfg *config.Config, root fs.FS, access func(dir string) error) string {
	dir := filepath.Dir(cfg.Cache.Path)
	switch {
	case !isDir(dir):
		return fmt.Sprintf("cache.path: there is no folder %s: the daemon will not start before it is there", dir)
	case errors.Is(access(dir), unix.EROFS):
		return fmt.Sprintf("cache.path: the file system of %s is read-only here; %s", dir, letWrite(dir))
	case cfg.File == config.DefaultPath && isBarred(dir, root): // which is the file that the unit has read
		return fmt.Sprintf("cache.path: %s is read-only for the daemon of the package; %s", dir, letWrite(dir))
	}
	return ""
}

func mayWrite(dir string) error { return unix.Access(dir, unix.W_OK) }

// isBarred says whether the packages' unit, as it stands, keeps the daemon from
// writing to a folder. It goes by the words of the files: what systemd makes of
// several of them is for systemd to say, so any that names the folder, or takes
// the protection away, counts as leave.
func isBarred(dir string, root fs.FS) bool {
	if isBelow(dir, filepath.Dir(config.Default().Cache.Path)) {
		return false
	}
	installed := false
	for _, name := range unitFiles {
		if _, err := fs.Stat(root, name); err == nil {
			installed = true
		}
	}
	if !installed {
		return false
	}
	for _, pattern := range unitEdits {
		names, err := fs.Glob(root, pattern)
		if err != nil {
			continue // the patterns are constants
		}
		for _, name := range names {
			text, err := fs.ReadFile(root, name)
			if err != nil || allows(string(text), dir) {
				return false // what cannot be read may allow it
			}
		}
	}
	return true
}

// allows says whether a unit file has words that let a service write to a folder.
func allows(unit, dir string) bool {
	for line := range strings.Lines(unit) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch strings.TrimSpace(key) {
		case "ProtectSystem":
			return true
		case "ReadWritePaths", "ReadWriteDirectories":
			for _, path := range strings.Fields(value) {
				if isBelow(dir, strings.TrimLeft(path, "-+")) {
					return true
				}
			}
		case "StateDirectory":
			for _, name := range strings.Fields(value) {
				if isBelow(dir, filepath.Join("/var/lib", name)) {
					return true
				}
			}
		}
	}
	return false
}

// isBelow says whether dir is parent or below it.
func isBelow(dir, parent string) bool {
	rel, err := filepath.Rel(parent, dir)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
