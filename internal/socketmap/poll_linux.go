package socketmap

import "golang.org/x/sys/unix"

// pollRDHUP: the client has closed its sending side.
const pollRDHUP = unix.POLLRDHUP
