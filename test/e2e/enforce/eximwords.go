package enforce

import (
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// Exim's log texts for mail that is not delivered.
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

// eximsWords maps Postfix's log texts to Exim's.
var eximsWords = map[string]string{
	notOffered: noTLS,
	selfSigned: badCert,
	expired:    badCert,
	otherName:  badCert,
	notListed:  unlisted,
	noPolicy:   noAnswer, // eximsFates has the daemon's reason where Exim logs it
	noMatch:    badTLSA,
	tlsaFailed: noTLSA,
	mxFailed:   noMX,
}

// ofExim returns f with Exim's log texts. Without a required certificate, Exim
// does not tell a good one from others.
func (f fate) ofExim(got stage.Outcome) fate {
	if words, ok := eximsWords[f.reason]; ok {
		f.reason = words
	}
	if f.tls == "Trusted" && (got.TLS == "Verified" || got.TLS == "Untrusted") {
		f.tls = got.TLS
	}
	return f
}

// eximsFates are the rows with another fate in Exim.
var eximsFates = map[string]func(*world, *testlab.Domain) fate{
	// Exim applies DANE to each host separately.
	"some.signed.example":      toTheFirst,
	"some-fail.signed.example": toTheSecond,
	// Without a policy, too.
	"some-alone.signed.example": func(w *world, d *testlab.Domain) fate {
		f := toTheSecond(w, d)
		f.tls = "Trusted"
		return f
	},
	// The main log has the daemon's reason.
	"keyword.test": toNobody("MTA-STS: keyword.test: MTA-STS " + noUsable),
	"only-ip.test": toNobody("MTA-STS: only-ip.test: MTA-STS " + noUsable),
	// Exim gets only the hosts that the policy lists.
	"unlisted.signed.example": toNobody(unlisted),
	"null.signed.example":     toNobody(takesNone),
	// A router that cannot look up one host's address defers.
	"address-fails.signed.example":   toNobody(noAddress),
	"address-fails-2.signed.example": toNobody(noAddress),
	"hoster-1.signed.example":        toNobody(noAddress),
	"hoster-2.signed.example":        toNobody(noAddress),
	"all-fail.signed.example":        toNobody(noAddress),
	"tlsa-some.signed.example":       func(_ *world, d *testlab.Domain) fate { return verified(d.Mail[1]) },
	// Exim asks for TLSA records at the alias's target and matches the
	// certificate with the listed name.
	"alias.signed.example":          toNobody(badCert),
	"alias-mismatch.signed.example": toTheFirst,
}

// toTheSecond expects delivery to the second host after DANE failed at the
// first. Exim still sends the first host's name as server name.
func toTheSecond(_ *world, d *testlab.Domain) fate {
	f := verified(d.Mail[1])
	f.sni = d.Mail[0].Name
	return f
}
