// Package socketmap speaks Postfix's socketmap protocol (socketmap_table(5)):
// requests "MAP KEY" in netstrings come in on stream sockets, one reply in a
// netstring goes out for each, in order. It knows nothing of mail: a Handler
// says what the reply is.
//
// The server assumes that whoever can reach its sockets may be hostile or
// broken: everything that can be sent, held or waited for has a limit, and the
// limits stand in this file. Who may reach the sockets is for the operator to
// say, with the address or the socket's mode: the protocol has no
// authentication and no encryption, and this package adds none.
package socketmap

import (
	"context"
	"time"
)

// A Handler answers lookups.
type Handler interface {
	// AppendReply appends the reply to key in the map mapName to dst and
	// returns the extended slice, as append does: "OK DATA", "NOTFOUND ",
	// "TEMP REASON", "TIMEOUT REASON" or "PERM REASON", without the netstring
	// frame. mapName and key are valid during the call only. It is called
	// from many goroutines at once, may block until ctx ends, and must
	// return soon after.
	AppendReply(ctx context.Context, dst, mapName, key []byte) []byte
}

// The replies that the server gives by itself.
const (
	replyNoSpace   = `PERM a request is a map name, a space and a key`
	replyLong      = `NOTFOUND `
	replyPanic     = `TEMP internal error, see the log`
	replyEmpty     = `TEMP internal error, no reply`
	replyOversized = `TEMP the reply is longer than 100,000 bytes`
	replyNoMemory  = `TEMP too many long replies wait for clients that do not read them`
)

// Limits of the protocol, in bytes.
const (
	MaxRequest = 10_000   // of a request that is looked up; Postfix has the same limit on a key since 3.12
	MaxRead    = 64 << 10 // of a request that is read. Above MaxRequest it is NOTFOUND: a closed socket would defer the mail
	MaxReply   = 100_000  // of a reply, as Postfix reads it
)

// Limits of time. Those of a connection are looked at once in watchEvery.
const (
	StartedTimeout = 10 * time.Second  // from a request's first byte to its last
	IdleTimeout    = 100 * time.Second // without a request; Postfix closes its own connections after 10 s
	WriteTimeout   = 10 * time.Second  // for a client to accept a reply
	watchEvery     = time.Second

	DrainTimeout  = 10 * time.Second      // to be given to Shutdown
	newcomerGrace = time.Second           // in a shutdown, for a connection that has not asked yet
	lastReadWait  = 10 * time.Millisecond // in a shutdown, for the others
	cancelGrace   = time.Second           // in a shutdown, for handlers that were cancelled

	QueryTimeout = 100 * time.Second    // of a Query, as Postfix waits
	acceptPause  = 5 * time.Millisecond // after an accept that failed
	logEvery     = 10 * time.Second     // between two log lines about one kind of event that clients can cause at will
)

// Limits of number and memory.
const (
	// What a connection has at rest, in bytes. An MTA's request is a few dozen
	// bytes, a reply a few hundred.
	readBuffer  = 1 << 10
	writeBuffer = 4 << 10

	// What the kernel may hold for a connection, in bytes. It counts against the
	// memory limit of the service. Linux doubles what is set.
	sendBuffer    = 16 << 10
	receiveBuffer = 16 << 10

	// maxUnread is the memory, in bytes, of replies longer than writeBuffer
	// that clients have not taken yet. When more is needed, the clients that have
	// left theirs for longest are closed, if for stalledAfter at least. Meanwhile
	// nothing is read from clients with unread replies: they are looked at once in
	// awaitRoomEvery.
	maxUnread      = 24 << 20
	stalledAfter   = time.Second
	awaitRoomEvery = 250 * time.Millisecond

	// To make room, maxVictims idle connections are noted in one go. When none
	// was found, or no stalled client, the next search is scanEvery later.
	maxVictims = 64
	scanEvery  = 50 * time.Millisecond

	minAge = time.Second // of a busy connection that gives way, if there is one

	maxLogged      = 300 // bytes of a request in the log
	maxLoggedBytes = 40  // bytes of malformed input in the log
)
