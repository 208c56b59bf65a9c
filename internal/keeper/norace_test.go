//go:build !race

package keeper

const raceDetector = false
