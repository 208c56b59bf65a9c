package control

import "golang.org/x/sys/unix"

// peerUID returns the uid that opened a unix socket (LOCAL_PEERCRED, unix(4)).
func peerUID(fd int) uint32 {
	cred, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return unknownUID
	}
	return cred.Uid
}
