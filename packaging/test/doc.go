// Package test installs the packages on a Debian with a booted systemd and
// Debian's own Postfix, and with rpm. They must install, run, restart, upgrade
// and uninstall as an operator expects, without a lost lookup.
//
// Left out: the daemon's answers, which test/e2e tests.
package test
