package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/config"
	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A pager is a reader that lets the listing wait: meanwhile a daemon starts.
type pager struct {
	bytes.Buffer
	path string
	err  error
}

func (p *pager) Write(b []byte) (int, error) {
	store, err := cache.Open(p.path, cache.Options{})
	if err == nil {
		err = store.Close()
	}
	if p.err == nil {
		p.err = err
	}
	return p.Buffer.Write(b)
}

func TestAStalledListingDoesNotBlockAStartOfTheDaemon(t *testing.T) {
	const n = 2*cache.MaxPage + 1
	cfg := new(config.Config)
	cfg.Cache.Path = filepath.Join(t.TempDir(), "cache.db")
	store, err := cache.Open(cfg.Cache.Path, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var ops []cache.Op
	now := time.Now()
	for i := range n {
		ops = append(ops, cache.Op{Put: &cache.Record{
			Domain: fmt.Sprintf("d%04d.example", i), Mode: policy.ModeEnforce, Text: []byte("mode: enforce\n"),
			Fetched: now, Expires: now.Add(time.Hour),
		}})
	}
	if _, err := store.Write(ops); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	out := &pager{path: cfg.Cache.Path}
	listing := explain.NewListing(out, true, now)
	if err := (&app{cfg: cfg}).listFile(listing.Add); err != nil {
		t.Fatal(err)
	}
	if err := listing.Close(); err != nil {
		t.Fatal(err)
	}
	if out.err != nil {
		t.Errorf("a daemon that starts: %v", out.err)
	}
	if got := bytes.Count(out.Bytes(), []byte("\n")); got != n {
		t.Errorf("%d lines, not %d", got, n)
	}
}

func TestExplainShowsOnlyTheMapsThatAnMTAHasAsked(t *testing.T) {
	a := &app{health: control.Health{Maps: mta.Builtin()}}
	if maps, title := a.inUse(); len(maps) != len(mta.Builtin()) || title != "What the maps reply" {
		t.Errorf("none was asked: %v, %s", maps, title)
	}
	a.health.Asked = []string{"exim"}
	if maps, title := a.inUse(); len(maps) != 1 || maps[0].Name != "exim" || title != "What the maps in use reply" {
		t.Errorf("exim was asked: %v, %s", maps, title)
	}
}
