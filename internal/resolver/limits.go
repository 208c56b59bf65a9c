package resolver

import "time"

// The limits of a query. They stand together so that they can be read together.
const (
	defaultTimeout  = 5 * time.Second  // for one server to answer once; as libc
	maxTimeout      = 30 * time.Second // of `options timeout:n`; as libc
	defaultAttempts = 2                // rounds through the servers; as libc
	maxAttempts     = 5                // of `options attempts:n`; as libc
	queryTime       = 30 * time.Second // for a query: all servers, all rounds, all CNAMEs

	maxServers   = 3  // of resolv.conf; as libc
	maxCNAMEs    = 16 // CNAMEs from the asked name to the last one
	maxQuestions = 8  // questions asked to follow them
	maxAddresses = 32 // addresses of a host; the rest is left out

	maxTTL = 7 * 24 * time.Hour // a longer one is cut down to it (RFC 8767, 4)

	// udpSize is what we say that we take in one datagram: what passes
	// everywhere without fragments. Servers that send more are read up to
	// udpBuffer and asked again over TCP beyond.
	udpSize   = 1232
	udpBuffer = 4096

	maxResolvConf  = 64 << 10        // bytes of resolv.conf that are read
	resolvConfLook = 3 * time.Second // between two looks at resolv.conf

	// A server that was silent restAfter times in a row is asked last for
	// restTime: a dead first server must not cost each query a time-out.
	restAfter = 3
	restTime  = 30 * time.Second
)
