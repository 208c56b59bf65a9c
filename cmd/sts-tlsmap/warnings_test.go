package main

import (
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
)

func TestASocketNeedsNoFolderWhereSystemdHoldsIt(t *testing.T) {
	cfg := config.Default()
	cfg.Control.Address, cfg.Cache.Path = "/nowhere/control.sock", t.TempDir()+"/cache.db"
	cfg.Listen = append(cfg.Listen, endpoint.Endpoint{Network: "unix", Address: "/nowhere/map.sock"})
	if got := folderWarnings(cfg, nil); len(got) != 2 {
		t.Errorf("got %q, want one for each", got)
	}
	if got := folderWarnings(cfg, []string{keyListen, keyControl}); len(got) != 0 {
		t.Errorf("got %q", got)
	}
	cfg.Control.Address = t.TempDir() + "/control.sock"
	if got := folderWarnings(cfg, []string{keyListen}); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}
