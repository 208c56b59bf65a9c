//go:build !linux

package keeper

import "time"

func sinceBoot() func() time.Duration { return monotonic() }
