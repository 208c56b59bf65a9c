package stage

import (
	"syscall"
	"testing"
)

// Pause stops the daemon's process: its connections stay open and new ones are
// queued, but nothing is answered until Resume.
func (d *Daemon) Pause(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(d.PID, syscall.SIGSTOP); err != nil {
		t.Fatalf("pausing the daemon: %v", err)
	}
}

func (d *Daemon) Resume(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(d.PID, syscall.SIGCONT); err != nil {
		t.Fatalf("resuming the daemon: %v", err)
	}
}
