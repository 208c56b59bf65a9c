package main

import (
	"runtime/debug"
	"testing"
)

func TestVersionAndCommitComeFromTheGoCommandWhereTheLinkerWroteNone(t *testing.T) {
	checkout := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"}, {Key: "vcs.time", Value: "2026-12-01T04:01:59Z"}}
	for _, tt := range []struct {
		name, module          string
		settings              []debug.BuildSetting
		version, commit, date string
	}{
		{"go install of a tag", "v1.2.3", nil, "1.2.3", "unknown", "unknown"},
		{"go install of a release candidate", "v1.2.3-rc.1", nil, "1.2.3-rc.1", "unknown", "unknown"},
		{"go install of a commit", "v0.0.0-20261201040159-8bd034a01234", nil, "0.0.0-20261201040159-8bd034a01234", "8bd034a01234", "unknown"},
		{"go build in a checkout", "v1.2.4-0.20261201040159-0123456789ab+dirty", checkout, "1.2.4-0.20261201040159-0123456789ab+dirty", "0123456789ab", "2026-12-01"},
		{"a build of a checkout without its tags", "(devel)", checkout, "dev", "0123456789ab", "2026-12-01"},
		{"a test", "", nil, "dev", "unknown", "unknown"},
	} {
		info := &debug.BuildInfo{Main: debug.Module{Version: tt.module}, Settings: tt.settings}
		if version, commit, date := versionOf(info); version != tt.version || commit != tt.commit || date != tt.date {
			t.Errorf("%s: %s, %s, %s, want %s, %s, %s", tt.name, version, commit, date, tt.version, tt.commit, tt.date)
		}
	}
}
