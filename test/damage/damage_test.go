//go:build slow

// Package damage tests what the real daemon answers when its cache file is
// damaged and no policy can be fetched again. A domain whose enforced policy was
// held, and whose record survives the damage, must be enforced or deferred, never
// NOTFOUND.
//
// Left out: damage that ends the process (internal/cache has it).
package damage

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

const (
	domains  = 1000
	page     = 4096
	oneReply = 15 * time.Second // a lookup must be answered within
	salvaged = time.Minute      // and a salvage be done within
)

func name(i int) string { return fmt.Sprintf("d%d.test", i) }

// fill writes a cache of enforced policies, fetched an hour ago.
func fill(t *testing.T, path string) {
	t.Helper()
	store, err := cache.Open(path, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Add(-time.Hour)
	ops := make([]cache.Op, domains)
	for i := range ops {
		text := []byte(testlab.PolicyText("enforce", 7*24*time.Hour, "mx."+name(i)))
		p, err := policy.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		ops[i].Put = &cache.Record{
			Domain: name(i), ID: "1", Mode: p.Mode, Text: text, Match: tlsmap.MatchList(p),
			Fetched: now, Checked: now, Used: now, Expires: now.Add(7 * 24 * time.Hour),
			FetchAt: now.Add(20 * time.Hour), FetchUnusedAt: now.Add(80 * time.Hour), Due: now.Add(80 * time.Hour), Lane: cache.LaneNormal,
		}
	}
	if _, err := store.Write(ops); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

// survivors returns the domains of which a file has a whole record, as the format
// has it (docs/internals.md): a mark, a version, a checksum, a length.
func survivors(file []byte) map[string]bool {
	const header, length, domain = 116, 12, 102
	mark := []byte("\x00\x01\xffSTS\xfe")
	found := make(map[string]bool)
	for at := 0; ; at += len(mark) {
		i := bytes.Index(file[at:], mark)
		if i < 0 {
			return found
		}
		at += i
		rest := file[at:]
		if len(rest) < header {
			return found
		}
		n := binary.LittleEndian.Uint32(rest[length:])
		if n < header || int(n) > len(rest) {
			continue
		}
		if crc32.Checksum(rest[length:n], crc32.MakeTable(crc32.Castagnoli)) == binary.LittleEndian.Uint32(rest[8:]) {
			found[string(rest[header:header+int(rest[domain])])] = true
		}
	}
}

// hidden is how many of a thousand records a thousand flipped bits may hide: bbolt has no
// checksum over the list of keys of a page, and reading all pages takes too long at a start.
const hidden = 5

// harms are the ways in which a file is damaged. Each returns the new bytes.
var harms = []struct {
	name string
	do   func(b []byte, r *rand.Rand) []byte
}{
	{"one meta page is zero", func(b []byte, _ *rand.Rand) []byte { clear(b[:page]); return b }},
	{"both meta pages are zero", func(b []byte, _ *rand.Rand) []byte { clear(b[:2*page]); return b }},
	{"both meta pages are noise", func(b []byte, r *rand.Rand) []byte { return noise(b, r, 0, 2*page) }},
	{"every tenth page is zero", func(b []byte, _ *rand.Rand) []byte {
		for at := 2 * page; at < len(b); at += 10 * page {
			clear(b[at:min(at+page, len(b))])
		}
		return b
	}},
	{"every tenth page is noise", func(b []byte, r *rand.Rand) []byte {
		for at := 3 * page; at < len(b); at += 10 * page {
			b = noise(b, r, at, min(at+page, len(b)))
		}
		return b
	}},
	{"a thousand bits are flipped", func(b []byte, r *rand.Rand) []byte {
		for range 1000 {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		}
		return b
	}},
	{"a bit in each page header is flipped", func(b []byte, r *rand.Rand) []byte {
		for at := 2 * page; at < len(b); at += page {
			b[at+r.IntN(16)] ^= 1 << r.IntN(8)
		}
		return b
	}},
	{"a page is overwritten by another", func(b []byte, _ *rand.Rand) []byte {
		last := len(b)/page - 1
		copy(b[3*page:4*page], bytes.Clone(b[last*page:(last+1)*page]))
		return b
	}},
	{"the second half is cut off", func(b []byte, _ *rand.Rand) []byte { return b[:len(b)/2/page*page] }},
	{"the file is cut inside a page", func(b []byte, _ *rand.Rand) []byte { return b[:len(b)-page/2] }},
	{"the file is empty", func([]byte, *rand.Rand) []byte { return nil }},
	{"all of it is noise", func(b []byte, r *rand.Rand) []byte { return noise(b, r, 0, len(b)) }},
}

func noise(b []byte, r *rand.Rand, from, to int) []byte {
	for i := from; i < to; i++ {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestADamagedCacheFileCostsNoHeldDomainItsProtection(t *testing.T) {
	dir := t.TempDir()
	program, err := testlab.BuildDaemon(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	lab := testlab.New(t)
	lab.DNS.Break("*", "", testlab.ServFail)
	sample := filepath.Join(dir, "sample.db")
	fill(t, sample)
	whole, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(survivors(whole)); n != domains {
		t.Fatalf("%d of %d records can be found in a whole file: this shows nothing", n, domains)
	}
	for _, h := range harms {
		for _, running := range []bool{false, true} {
			when := "while it is stopped"
			if running {
				when = "while it runs"
			}
			t.Run(h.name+" "+when, func(t *testing.T) {
				seed := uint64(time.Now().UnixNano())
				t.Logf("seed %d", seed)
				damaged := h.do(bytes.Clone(whole), rand.New(rand.NewPCG(seed, 0)))
				most := 0
				if h.name == "a thousand bits are flipped" {
					most = hidden
				}
				harm(t, program, lab, whole, damaged, running, most)
			})
		}
	}
}

// harm gives a daemon a damaged file, before its start or while it runs, and looks
// at what it answers. Of the records that survive, it may miss most.
func harm(t *testing.T, program string, lab *testlab.T, whole, damaged []byte, running bool, most int) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "cache.db")
	before := whole
	if !running {
		before = damaged
	}
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(dir, "ca.pem")
	if err := lab.CA.WritePEM(ca); err != nil {
		t.Fatal(err)
	}
	d, err := testlab.NewDaemon(program, dir, testlab.DaemonConfig{DNS: lab.DNS.Addr, CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the log:\n%s", d.Log())
		}
	}()
	if running {
		overwrite(t, path, damaged)
	}
	alive := survivors(damaged)
	counts := askAll(t, d, alive, most)
	t.Logf("%d records survive; at once: %v", len(alive), counts)

	deadline := time.Now().Add(salvaged)
	for strings.Contains(d.Log(), "was set aside") && !strings.Contains(d.Log(), "recovered=") {
		if time.Now().After(deadline) {
			t.Fatal("the log does not say what was carried over")
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Logf("after the salvage: %v", askAll(t, d, alive, most))
}

// overwrite changes the bytes of a file that is open elsewhere.
func overwrite(t *testing.T, path string, text []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(text, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(len(text))); err != nil {
		t.Fatal(err)
	}
}

// askAll looks every domain up and counts the replies by their first word. Of those alive,
// most at most may be without their policy.
func askAll(t *testing.T, d *testlab.Daemon, alive map[string]bool, most int) map[string]int {
	t.Helper()
	at := endpoint.Endpoint{Network: "tcp", Address: d.Address}
	counts := make(map[string]int)
	var lost []string
	for i := range domains {
		ctx, cancel := context.WithTimeout(t.Context(), oneReply)
		reply, err := socketmap.Query(ctx, at, "postfix", name(i))
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", name(i), err)
		}
		word, _, _ := strings.Cut(reply, " ")
		counts[word]++
		if word == "OK" && !strings.HasPrefix(reply, "OK secure match=mx."+name(i)+" ") || word != "OK" && word != "TEMP" && word != "NOTFOUND" {
			t.Errorf("%s: the reply is %q", name(i), reply)
		}
		if word == "NOTFOUND" && alive[name(i)] {
			lost = append(lost, name(i))
		}
	}
	if len(lost) > most {
		t.Errorf("%s have lost their protection: their records are in the file", lost)
	}
	return counts
}
