package main

import (
	"runtime/debug"
	"strings"
)

// What the linker writes in: -ldflags "-X main.version=...".
var version, commit, date = "dev", "unknown", "unknown"

func init() {
	if info, ok := debug.ReadBuildInfo(); ok && version == "dev" {
		version, commit, date = versionOf(info)
	}
}

// versionOf tells version, commit and date from what the go command records: of "go install
// MODULE@VERSION" the version, which names a commit where it is no tag; of a build in a checkout
// the commit too.
func versionOf(info *debug.BuildInfo) (version, commit, date string) {
	version, commit, date = "dev", "unknown", "unknown"
	if v := info.Main.Version; v != "" && v != "(devel)" {
		version = strings.TrimPrefix(v, "v")
		// A pseudo-version ends in a time and twelve digits of the commit.
		base, _, _ := strings.Cut(version, "+")
		if parts := strings.Split(base, "-"); len(parts) >= 3 && len(parts[len(parts)-1]) == 12 {
			commit = parts[len(parts)-1]
		}
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			commit = s.Value[:12]
		case s.Key == "vcs.time" && len(s.Value) >= 10:
			date = s.Value[:10]
		}
	}
	return version, commit, date
}
