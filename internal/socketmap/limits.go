package socketmap

import "time"

// Limits of the protocol, in bytes.
const (
	// MaxRequest is the longest request that is looked up. Postfix has the
	// same limit on a key since 3.12.
	MaxRequest = 10_000

	// MaxRead is the longest request that is read. Above MaxRequest it is
	// answered NOTFOUND and not kept: Postfix before 3.12 sends keys of any
	// length, and a closed socket would defer the mail.
	MaxRead = 64 << 10

	// MaxReply is the longest reply that Postfix reads.
	MaxReply = 100_000
)

// Limits of time.
const (
	// StartedTimeout is how long a request may take from its first byte to
	// its last.
	StartedTimeout = 10 * time.Second

	// IdleTimeout is how long a connection may stay without asking. Postfix
	// closes its own after 10 s without use.
	IdleTimeout = 100 * time.Second

	// WriteTimeout is how long a client may take to accept its replies.
	WriteTimeout = 10 * time.Second

	// DrainTimeout is the time to give to Shutdown.
	DrainTimeout = 10 * time.Second

	// newcomerGrace is how long a connection that has not asked yet may still do
	// so when the server shuts down.
	newcomerGrace = time.Second

	// QueryTimeout ends a Query whose context has no earlier end. Postfix
	// waits as long for its replies.
	QueryTimeout = 100 * time.Second

	// maxHold is how long a finished reply waits for those that follow it on
	// a connection that sends requests without waiting for replies.
	maxHold = 2 * time.Millisecond

	// cancelGrace is how long Shutdown waits for handlers after it has
	// cancelled them.
	cancelGrace = time.Second

	// acceptBackoffMin and acceptBackoffMax bound the pause after an accept
	// that failed, for instance for want of file descriptors.
	acceptBackoffMin = 5 * time.Millisecond
	acceptBackoffMax = time.Second

	// logEvery is the least time between two log lines about one kind of
	// event that clients can cause at will.
	logEvery = 10 * time.Second
)

// Limits of number and memory.
const (
	// DefaultMaxConnections is the number of connections held at once.
	DefaultMaxConnections = 4096

	// readBuffer and writeBuffer are what a connection has at rest, in bytes.
	// An MTA's request is a few dozen bytes, a reply a few hundred.
	readBuffer  = 1 << 10
	writeBuffer = 4 << 10

	// maxGather is the size from which gathered replies are written although
	// more requests wait, in bytes. It leaves room for one more reply of the
	// usual size in the write buffer.
	maxGather = 3 << 10

	// maxVictims is how many of the longest idle connections are noted in
	// one go through all of them.
	maxVictims = 64

	// maxLogged is how much of a request goes into the log, maxLoggedBytes how
	// much of what is no request, in characters.
	maxLogged      = 300
	maxLoggedBytes = 40
)

// limits are those that tests shorten.
type limits struct {
	started, idle, write time.Duration
	hold, cancelGrace    time.Duration
	newcomer             time.Duration
}

func defaultLimits() limits {
	return limits{
		started:     StartedTimeout,
		idle:        IdleTimeout,
		write:       WriteTimeout,
		hold:        maxHold,
		cancelGrace: cancelGrace,
		newcomer:    newcomerGrace,
	}
}
