package keeper

import (
	"time"

	"golang.org/x/sys/unix"
)

// sinceBoot returns CLOCK_BOOTTIME, which counts suspended time too.
func sinceBoot() func() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return monotonic()
	}
	return func() time.Duration {
		var ts unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
		return time.Duration(ts.Nano())
	}
}
