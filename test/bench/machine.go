package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A machine describes where and when the figures were measured.
type machine struct {
	cores          int
	cpu            string // model
	kernel, commit string
	date           string
	load           string // one-minute load average before the run
}

const unknown = "unknown"

func thisMachine(load string) machine {
	return machine{
		cores: runtime.NumCPU(), cpu: cpuModel(),
		kernel: firstField("/proc/sys/kernel/osrelease"),
		commit: commit(), date: time.Now().Format(time.DateOnly), load: load,
	}
}

func (m machine) String() string {
	s := fmt.Sprintf(`Measured on %s at commit %s, with %s on %s/%s, Linux %s,
%d cores of %s. The load of one minute was %s when it began.`,
		m.date, m.commit, runtime.Version(), runtime.GOOS, runtime.GOARCH, m.kernel, m.cores, m.cpu, m.load)
	if n, err := strconv.ParseFloat(m.load, 64); err != nil || n > float64(m.cores)/2 {
		s += `
**The machine was busy.** That does not meet both sides of a pair alike: what the
daemon does beside by the clock weighs more the longer its share of the work
takes, and its data leave the caches. These figures are not to be relied on.`
	}
	return s
}

// loadOfMinute returns the one-minute load average.
func loadOfMinute() string { return firstField("/proc/loadavg") }

func firstField(path string) string {
	text, err := os.ReadFile(path)
	if fields := strings.Fields(string(text)); err == nil && len(fields) > 0 {
		return fields[0]
	}
	return unknown
}

// cpuModel returns the kernel's name of the processor.
func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return unknown
	}
	for line := range strings.Lines(string(text)) {
		if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return unknown
}

// commit returns the commit of the working tree, with "-dirty" if it has
// changes.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return unknown
	}
	return strings.TrimSpace(string(out))
}
