//go:build race

package keeper

// raceDetector makes everything some ten times slower; the floods are smaller then.
const raceDetector = true
