package testlab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A Clock is the file with the offset of a daemon's clock. Without the file, the clock
// is right. Timers are not affected.
type Clock string

const clockVariable = "STS_TLSMAP_TEST_CLOCK" // names the file with the offset, in seconds

// clockGo becomes a file of package time.
const clockGo = `package time

import "syscall"

// lastOffset is for timers: the runtime's own stack has no room for system calls.
var lastOffset int64

func Now() Time {
	lastOffset = testOffset()
	return nowAt(lastOffset)
}

func testOffset() int64 {
	name, _ := syscall.Getenv("` + clockVariable + `")
	fd, err := open(name)
	if err != nil {
		return 0
	}
	defer closefd(fd)
	text := make([]byte, 32)
	n, _ := read(fd, text)
	offset, sign := int64(0), int64(1)
	for _, c := range text[:max(n, 0)] {
		if c == '-' {
			sign = -1
		} else {
			offset = 10*offset + int64(c-'0')
		}
	}
	return sign * offset
}
`

// BuildDaemonWithClock is BuildDaemon for a program whose time.Now adds the offset of
// the Clock in its environment.
func BuildDaemonWithClock(ctx context.Context, dir string) (path string, err error) {
	list, err := clockOverlay(dir)
	if err != nil {
		return "", fmt.Errorf("changing package time: %w", err)
	}
	return BuildDaemon(ctx, dir, "-overlay", list)
}

// clockOverlay writes the list that go build -overlay takes.
func clockOverlay(dir string) (path string, err error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	src := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	replace := make(map[string]string)
	write := func(name, text string) error {
		replace[filepath.Join(src, name)] = filepath.Join(dir, name)
		return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)
	}
	if err := write("offset.go", clockGo); err != nil {
		return "", err
	}
	for _, change := range [][3]string{
		{"time.go", "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n", "func nowAt(offset int64) Time {\n\tsec, nsec, mono := runtimeNow()\n\tsec += offset\n"},
		{"sleep.go", "<- Now().Add(", "<- nowAt(lastOffset).Add("},
	} {
		text, err := os.ReadFile(filepath.Join(src, change[0]))
		if err != nil {
			return "", err
		}
		if strings.Count(string(text), change[1]) != 1 {
			return "", fmt.Errorf("this version of Go has another %s", change[0])
		}
		if err := write(change[0], strings.Replace(string(text), change[1], change[2], 1)); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, list, 0o600)
}

// Env is the variable for the daemon's environment.
func (c Clock) Env() string { return clockVariable + "=" + string(c) }

// Set sets the clock, ahead of the right time.
func (c Clock) Set(ahead time.Duration) error {
	next := string(c) + ".next"
	if err := os.WriteFile(next, fmt.Append(nil, int64(ahead/time.Second)), 0o600); err != nil {
		return err
	}
	return os.Rename(next, string(c))
}
