package metrics

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

	// sampleSize is from how many records ages are told, and sampleEvery how
	// often they are read.
	sampleSize  = 200
	sampleEvery = time.Minute
)
