// Package socketmap speaks Postfix's socketmap protocol (socketmap_table(5)):
// requests "MAP KEY" in netstrings come in on stream sockets, one reply in a
// netstring goes out for each, in order. It knows nothing of mail: a Handler
// says what the reply is.
//
// The server assumes that whoever can reach its sockets may be hostile or
// broken: everything that can be sent, held or waited for has a limit, and all
// limits stand in limits.go. Who may reach the sockets is for the operator to
// say, with the address or the socket's mode: the protocol has no
// authentication and no encryption, and this package adds none.
package socketmap

import "context"

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
)
