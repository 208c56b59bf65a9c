package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// eximRoot is the Debian root with the Exim to time.
const eximRoot = "exim-trixie"

// eximTook matches the test's log line: median, minimum, maximum, number of
// pairs, and the lookups of one message.
var eximTook = regexp.MustCompile(`a lookup takes (\S+), (\S+) to (\S+) in (\d+) pairs; (\d+ lookups for a message .*)`)

// eximLookup runs the end-to-end test that times the lookups of a real Exim.
func eximLookup(b *bench) (result, error) {
	setUp, err := exec.CommandContext(b.ctx, "test/e2e/setup", "-print", eximRoot).Output()
	if err != nil {
		return result{}, err
	}
	if _, err := os.Stat(filepath.Join(strings.TrimSpace(string(setUp)), "usr/sbin/exim4")); err != nil {
		return result{}, fmt.Errorf("no Exim to time: run test/e2e/setup %s as root first: %w", eximRoot, err)
	}
	test := exec.CommandContext(b.ctx, "go", "test", "-tags", "e2e", "-count=1", "-v",
		"-run", "^TestEximTrixie$/^a_lookup_takes_little_time$", "./test/e2e/mta")
	out, err := test.CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("%w\n%s", err, tail(string(out)))
	}
	m := eximTook.FindSubmatch(out)
	if m == nil || bytes.Contains(out, []byte("no tests to run")) {
		return result{}, errors.New("the end-to-end test did not log the time of a lookup")
	}
	var ms [3]float64
	for i := range ms {
		took, err := time.ParseDuration(string(m[i+1]))
		if err != nil {
			return result{}, err
		}
		ms[i] = float64(took.Microseconds()) / 1000
	}
	pairs, err := strconv.Atoi(string(m[4]))
	if err != nil {
		return result{}, err
	}
	return result{value: ms[0], low: ms[1], high: ms[2], count: pairs, counted: "pairs", note: string(m[5])}, nil
}
