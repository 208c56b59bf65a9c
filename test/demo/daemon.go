package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// A daemon is the program in its own directory, and Postfix's postmap if
// installed.
type daemon struct {
	*testlab.Daemon
	dir        string
	postmap    string // path; empty if not installed
	postfixDir string // has a main.cf for postmap
}

// newDaemon writes the configuration. The daemon reaches the lab's policy hosts
// through the lab's proxy.
func newDaemon(bin string, lab *testlab.Lab) (_ *daemon, err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(bin); err != nil {
		return nil, fmt.Errorf("%w; run \"make build\" first", err)
	}
	dir, err := os.MkdirTemp("", "sts-tlsmap-demo-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	ca := filepath.Join(dir, "ca.pem")
	if err := lab.CA.WritePEM(ca); err != nil {
		return nil, err
	}
	d := &daemon{dir: dir, postfixDir: filepath.Join(dir, "postfix")}
	if d.Daemon, err = testlab.NewDaemon(bin, dir, testlab.DaemonConfig{DNS: lab.DNS.Addr, CA: ca}); err != nil {
		return nil, err
	}
	d.Env = append(testlab.WithoutProxies(os.Environ()), "HTTPS_PROXY="+lab.Proxy.URL())
	for _, name := range []string{"postmap", "/usr/sbin/postmap"} { // PATH may lack sbin
		if d.postmap, err = exec.LookPath(name); err == nil {
			break
		}
	}
	if err := os.Mkdir(d.postfixDir, 0o755); err != nil {
		return nil, err
	}
	return d, os.WriteFile(filepath.Join(d.postfixDir, "main.cf"), []byte("compatibility_level = 2\n"), 0o644)
}

// remove stops the daemon and removes its files. It prints the daemon's log
// after a failure.
func (d *daemon) remove(failed bool) error {
	err := d.Stop()
	if failed || err != nil {
		fmt.Fprintf(os.Stderr, "\nThe daemon's log:\n%s\n", d.Log())
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}
