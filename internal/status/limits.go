package status

import "time"

// The limits of the page. docs/limits.md lists them.
const (
	// pagesAtOnce is how many pages are made at once; one more is refused
	// with 503.
	pagesAtOnce = 4
	// keepFor is how long what was gathered from the cache is shown again
	// before it is gathered anew, however many ask.
	keepFor = 5 * time.Second

	// samplePages and samplePage bound what is read of the cache for the
	// plots: all of a small one, and a sample of a large one.
	samplePages = 5
	samplePage  = 1000
	// plotHours is how far ahead the plot of what is due goes.
	plotHours = 24

	// maxFailures is how many domains are remembered for their failures, of
	// policies that are held and of discoveries each.
	maxFailures = 50
	// shownFailures is how many of them are on the page.
	shownFailures = 10
	// shownBusy is how many of the busiest domains are on the page.
	shownBusy = 10
	// maxQuestion is how many bytes of a question to the box are looked at.
	maxQuestion = 1024
)
