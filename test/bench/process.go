package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A bench is the environment of one row.
type bench struct {
	ctx       context.Context
	shop      *workshop
	pairCount int
	ends      []func()
}

// atEnd registers f to run when the row ends, the last one first.
func (b *bench) atEnd(f func()) { b.ends = append(b.ends, f) }

func (b *bench) end() {
	for len(b.ends) > 0 {
		last := len(b.ends) - 1
		b.ends[last]()
		b.ends = b.ends[:last]
	}
}

// A process is one side.
type process struct {
	address string        // where it listens; empty from start
	lines   *bufio.Reader // its further output; nil from start
	pid     int
}

// startSide runs a side in its own process.
func (b *bench) startSide(name string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// The side ends with its standard input, so it never outlives us.
	cmd := exec.CommandContext(b.ctx, self, append([]string{sideCommand, name}, args...)...)
	if _, err := cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p, err := b.start(cmd)
	if err != nil {
		return nil, err
	}
	p.lines = bufio.NewReader(stdout)
	line, err := p.lines.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("side %s did not start: %w", name, err)
	}
	p.address = strings.TrimSpace(line)
	return p, nil
}

// start starts a command. The end of the row kills it.
func (b *bench) start(cmd *exec.Cmd) (*process, error) {
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.atEnd(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &process{pid: cmd.Process.Pid}, nil
}

// sideCommand is the first argument of a process that runs a side.
const sideCommand = "side"

// sides are the parts of this program that run in their own processes. Each
// listens, calls ready and runs until the process is ended.
var sides = map[string]func(args []string) error{
	"ask":     askSide,
	"backlog": backlogSide,
	"collect": collectSide,
	"day":     daySide,
	"echo":    echoSide,
	"get":     getSide,
	"find":    findSide,
	"lab":     labSide,
	"receive": receiveSide,
	"send":    sendSide,
}

// ready tells the parent where the side listens.
func ready(address string) { fmt.Println(address) }

// runSide runs a side in this process.
func runSide(name string, args []string) error {
	side := sides[name]
	if side == nil {
		return errors.New("unknown side")
	}
	ended := make(chan error, 1)
	go func() { ended <- side(args) }()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		ended <- nil
	}()
	return <-ended
}

// cpu returns the CPU time of the process, user and system.
func (p *process) cpu() (time.Duration, error) {
	// The id of another process's CPU clock, as in clock_getcpuclockid(3). It
	// counts nanoseconds; /proc/PID/stat counts hundredths of a second.
	const cpuclockSched = 2
	clock := int32(^p.pid<<3 | cpuclockSched)
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", p.pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// cpuOf returns the CPU time of p during work, divided by n, in nanoseconds.
func (p *process) cpuOf(n int, work func() error) (float64, error) {
	before, err := p.cpu()
	if err != nil {
		return 0, err
	}
	if err := work(); err != nil {
		return 0, err
	}
	after, err := p.cpu()
	if err != nil {
		return 0, err
	}
	return float64(after-before) / float64(n), nil
}
