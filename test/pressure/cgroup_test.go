//go:build e2e

package pressure

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// What the packages' unit gives the daemon: MemoryMax=, GOMEMLIMIT, LimitNOFILE=.
const (
	memoryMax   = 512 << 20
	goMemLimit  = "GOMEMLIMIT=384MiB"
	descriptors = 16384
)

const removeWithin = 10 * time.Second

// A cgroup is a memory control group for one daemon. Its files have other names
// in cgroup v1 and v2.
type cgroup struct {
	dir       string
	peakFiles []string // bytes: the daemon's memory, the kernel's for it, and its cached files
	eventFile string   // has a line "oom_kill N"
}

// newCgroup makes a control group with memoryMax and without swap.
func newCgroup(t *testing.T) *cgroup {
	t.Helper()
	const root = "/sys/fs/cgroup"
	// v1 counts TCP's buffers by themselves, and only if they have a limit.
	parent, limits := filepath.Join(root, "memory"), []string{"memory.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes", "memory.memsw.limit_in_bytes"}
	g := &cgroup{peakFiles: []string{"memory.max_usage_in_bytes", "memory.kmem.tcp.max_usage_in_bytes"}, eventFile: "memory.oom_control"}
	if controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil && strings.Contains(string(controllers), "memory") {
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
			t.Fatalf("enabling the memory controller: %v", err)
		}
		parent, limits = root, []string{"memory.max", "memory.swap.max"}
		g.peakFiles, g.eventFile = []string{"memory.peak"}, "memory.events"
	}
	var err error
	if g.dir, err = os.MkdirTemp(parent, "sts-tlsmap-pressure-"); err != nil {
		t.Fatalf("this test limits the daemon's memory, and no memory control group can be made: %v", err)
	}
	t.Cleanup(func() { g.remove(t) })
	for _, name := range limits {
		value := strconv.Itoa(memoryMax)
		if name == "memory.swap.max" {
			value = "0"
		}
		err := os.WriteFile(filepath.Join(g.dir, name), []byte(value), 0)
		if err != nil && !(name != limits[0] && errors.Is(err, fs.ErrNotExist)) { // a kernel without swap
			t.Fatalf("limiting memory: %v", err)
		}
	}
	return g
}

// remove removes the group once its last process has ended.
func (g *cgroup) remove(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), removeWithin)
	defer cancel()
	if err := stage.Await(ctx, func() bool { return os.Remove(g.dir) == nil }); err != nil {
		t.Errorf("the control group %s cannot be removed: %v", g.dir, os.Remove(g.dir))
	}
}

// wrapper starts a command as the unit does: in the group, and with its number of
// descriptors.
func (g *cgroup) wrapper() []string {
	return []string{"/bin/sh", "-ec", fmt.Sprintf(`ulimit -n %d; echo $$ >"$0"; exec "$@"`, descriptors), filepath.Join(g.dir, "cgroup.procs")}
}

// peak returns the most bytes that the group has used.
func (g *cgroup) peak(t *testing.T) (sum int64) {
	t.Helper()
	for _, name := range g.peakFiles {
		sum += g.read(t, name, `^(\d+)`)
	}
	return sum
}

// kills returns how many processes the kernel has killed for memory.
func (g *cgroup) kills(t *testing.T) int64 {
	t.Helper()
	return g.read(t, g.eventFile, `(?m)^oom_kill (\d+)`)
}

func (g *cgroup) read(t *testing.T, name, pattern string) int64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return number(t, text, pattern)
}

// number returns the number that a pattern finds in text.
func number(t *testing.T, text []byte, pattern string) int64 {
	t.Helper()
	found := regexp.MustCompile(pattern).FindSubmatch(text)
	if found == nil {
		t.Fatalf("%q is not in %.300q", pattern, text)
	}
	n, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return int64(n)
}
