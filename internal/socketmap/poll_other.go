//go:build !linux

package socketmap

const pollRDHUP = 0 // not every system tells
