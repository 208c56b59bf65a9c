package enforce

import (
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// What Exim logs when it does not deliver.
const (
	noTLS      = "a TLS session is required, but the server did not offer TLS support"
	badCert    = "(certificate verification failed)"
	refusedTLS = "a TLS session is required, but an attempt to start TLS failed"
	brokenTLS  = "TLS session: (gnutls_handshake): "
	unlisted   = "none of its MX hosts is listed in its policy"
	noAnswer   = "sts-tlsmap does not answer"
	noMX       = "its MX hosts could not be looked up"
	noAddress  = "did not complete (DNS timeout?)"
	badTLSA    = "DANE attempt failed"
	noTLSA     = "DANE error: tlsa lookup DEFER"
	takesNone  = "it takes no mail (null MX), but its policy is enforced"
	putOff     = "retry time not reached"
	allIgnored = "lookup failed for all hosts"
)

// eximsWords are what Exim logs where Postfix logs something else.
var eximsWords = map[string]string{
	notOffered: noTLS,
	selfSigned: badCert,
	expired:    badCert,
	otherName:  badCert,
	notListed:  unlisted,
	noPolicy:   noAnswer, // where the daemon's reason is to be seen, eximsFates has it
	noMatch:    badTLSA,
	tlsaFailed: noTLSA,
	mxFailed:   noMX,
}

// ofExim returns what is wanted in the words of Exim. It does not tell a
// certificate that happens to be good from others where none is asked for.
func (f fate) ofExim(got stage.Outcome) fate {
	if words, ok := eximsWords[f.reason]; ok {
		f.reason = words
	}
	if f.tls == "Trusted" && (got.TLS == "Verified" || got.TLS == "Untrusted") {
		f.tls = got.TLS
	}
	return f
}

// eximsFates are the rows whose fate is another one with Exim.
var eximsFates = map[string]func(*world, *testlab.Domain) fate{
	// It decides host by host: what DANE says of one, says nothing of the next.
	"some.signed.example":      toTheFirst,
	"some-fail.signed.example": toTheSecond,
	// Alone, too.
	"some-alone.signed.example": func(w *world, d *testlab.Domain) fate {
		f := toTheSecond(w, d)
		f.tls = "Trusted"
		return f
	},
	// The main log has the daemon's reason.
	"keyword.test": toNobody("MTA-STS: keyword.test: MTA-STS " + noUsable),
	// It is told the hosts that the policy lists, and no others.
	"unlisted.signed.example": toNobody(unlisted),
	"null.signed.example":     toNobody(takesNone),
	// A router that cannot look up the address of one host defers.
	"address-fails.signed.example":   toNobody(noAddress),
	"address-fails-2.signed.example": toNobody(noAddress),
	// It asks for TLSA records at the name where an alias leads. The certificate
	// is held against the name that the policy lists.
	"alias.signed.example":          toNobody(badCert),
	"alias-mismatch.signed.example": toTheFirst,
}

// toTheSecond is the fate of mail whose first host has failed by DANE. Exim
// goes on to send the server name of that one.
func toTheSecond(_ *world, d *testlab.Domain) fate {
	f := verified(d.Mail[1])
	f.sni = d.Mail[0].Name
	return f
}
