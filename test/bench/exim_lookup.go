package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// eximRoot is the Debian whose Exim is timed.
const eximRoot = "exim-trixie"

var eximTook = regexp.MustCompile(`a lookup takes (\S+)`)

// eximLookup times what a lookup adds to Exim's work, by the end-to-end test
// that also holds that there is one a domain and message: a real Exim expands
// 500 lines with a lookup and 500 without.
func eximLookup(b *bench) (result, error) {
	setUp, err := exec.CommandContext(b.ctx, "test/e2e/setup", "-print", eximRoot).Output()
	if err != nil {
		return result{}, err
	}
	if _, err := os.Stat(filepath.Join(strings.TrimSpace(string(setUp)), "usr/sbin/exim4")); err != nil {
		return result{}, fmt.Errorf("no Exim to time: run test/e2e/setup %s as root first: %w", eximRoot, err)
	}
	test := exec.CommandContext(b.ctx, "go", "test", "-tags", "e2e", "-count=1", "-v",
		"-run", "TestEximEnforcesMTASTS/.*/a_lookup_takes_little_time", "./test/e2e/"+eximRoot)
	out, err := test.CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("%w\n%s", err, out[max(0, len(out)-2000):])
	}
	m := eximTook.FindSubmatch(out)
	if m == nil || bytes.Contains(out, []byte("no tests to run")) {
		return result{}, errors.New("the end-to-end test did not say how long a lookup takes")
	}
	took, err := time.ParseDuration(string(m[1]))
	if err != nil {
		return result{}, err
	}
	ms := float64(took.Microseconds()) / 1000
	return result{value: ms, low: ms, high: ms, note: "one lookup a domain and message, asserted by make e2e"}, nil
}
