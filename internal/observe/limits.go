package observe

import "time"

// The limits of the listener and of a scrape. docs/limits.md lists them.
const (
	// MaxConnections is how many clients are served at once; more wait.
	MaxConnections = 32
	// scrapesAtOnce is how many scrapes are answered at once; one more is
	// refused with 503.
	scrapesAtOnce = 4
	// scrapeTimeout bounds the gathering of the numbers.
	scrapeTimeout = 10 * time.Second

	// writeTimeout is the time from the request's arrival until the client has
	// taken the answer.
	writeTimeout = 15 * time.Second

	// agesSize is from how many records ages are told, and agesEvery how
	// often they are read.
	agesSize  = 200
	agesEvery = time.Minute
)

// The limits of the page.
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
