package stage

import (
	"syscall"
	"testing"
)

// Pause stops the daemon as a machine without memory does: it holds its
// connections and takes new ones, and answers nothing until Resume.
func (d *Daemon) Pause(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(d.PID, syscall.SIGSTOP); err != nil {
		t.Fatalf("pausing the daemon: %v", err)
	}
}

// Resume ends Pause.
func (d *Daemon) Resume(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(d.PID, syscall.SIGCONT); err != nil {
		t.Fatalf("resuming the daemon: %v", err)
	}
}
