package stage

import (
	"os/exec"
	"syscall"
)

// command returns a command inside the root; path is inside the root, too.
func (r Root) command(path string, args ...string) *exec.Cmd {
	c := exec.Command(path, args...)
	c.Dir = "/"
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: string(r)}
	return c
}
