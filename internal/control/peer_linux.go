package control

import "golang.org/x/sys/unix"

// peerUID returns the uid that opened a unix socket (SO_PEERCRED, unix(7)).
func peerUID(fd int) uint32 {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return unknownUID
	}
	return cred.Uid
}
