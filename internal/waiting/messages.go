package waiting

import "strings"

// A Cause is why mail waits, and what to do about it. DOMAIN, ID and MTA in a
// command stand for the policy domain, a message's queue id, and postfix, exim or sendmail.
type Cause struct {
	Name  string // for -json
	Words string
	Steps []Step
	all   bool // delays the mail of all domains
	tls   bool // a host failed a check that the policy, DANE or the MTA itself asked for
}

// A Step is a command and what it is for.
type Step struct {
	For     string `json:"for"`
	Command string `json:"command"`
}

var (
	start   = Step{"To start the daemon", "systemctl start sts-tlsmap"}
	journal = Step{"To see why it does not run", "journalctl -u sts-tlsmap -n 50"}
	check   = Step{"To see what is wrong on this machine", "sts-tlsmap -check"}
	explain = Step{"To see what the domain publishes, and the reply to the MTA", "sts-tlsmap -explain DOMAIN"}
	probe   = Step{"To see what each MX host shows now", "sts-tlsmap -probe DOMAIN"}
	refresh = Step{"To fetch the policy again", "sts-tlsmap -refresh DOMAIN"}
	exempt  = Step{"If the mail cannot wait for the domain, to ignore its policy for 4 hours", "sts-tlsmap -exempt DOMAIN -for 4h"}
	again   = Step{"To try a message again now", "" /* the MTA's */}
)

// The causes.
var (
	noAnswer = &Cause{Name: "no-answer", all: true, Steps: []Step{start, journal},
		Words: "sts-tlsmap does not answer. Mail to other hosts waits until it does."}
	notStarted = &Cause{Name: "not-started", all: true, Steps: []Step{check},
		Words: "sts-tlsmap cannot start, and all mail waits meanwhile."}
	unknownMap = &Cause{Name: "unknown-map", all: true, Steps: []Step{{"To see the right line", "sts-tlsmap -recipe MTA"}},
		Words: "The MTA asks for a map that sts-tlsmap does not have."}
	noReply = &Cause{Name: "no-policy", Steps: []Step{check, {"To see the daemon's reply", "sts-tlsmap -query DOMAIN"}},
		Words: "The MTA got no usable policy: sts-tlsmap did not answer or replied TEMP, or a TLS setting of Postfix's own is wrong."}
	nowReplies = &Cause{Name: "replies-now", all: true, Steps: []Step{again, check},
		Words: "The MTA got no usable policy when it tried. sts-tlsmap answers now, so mail goes out at the next try."}
	ourFault = &Cause{Name: "lookup", Steps: []Step{check},
		Words: "This machine could not look for the policy: the resolver or the network failed, or too many lookups came at once."}
	damaged = &Cause{Name: "damaged", Steps: []Step{refresh, exempt},
		Words: "The stored policy is damaged, and could not be fetched again."}
	dnsFails = &Cause{Name: "dns", Steps: []Step{explain, exempt},
		Words: "The domain's MX, address or TLSA records could not be looked up."}
	noUsable = &Cause{Name: "no-usable-mx", Steps: []Step{refresh, exempt},
		Words: "The policy is enforced, but lists no MX host that an MTA can use."}
	noHost = &Cause{Name: "no-host", Steps: []Step{explain, exempt},
		Words: "The policy is enforced, but the DNS has no host for the domain's mail, or no address for the hosts that the policy lists."}
	unlisted = &Cause{Name: "unlisted", tls: true, Steps: []Step{refresh, exempt},
		Words: "No MX host that could take the mail is listed in the domain's policy: the domain has moved its mail without a new policy, or the DNS is forged."}
	noTLS = &Cause{Name: "no-starttls", tls: true, Steps: []Step{probe, exempt},
		Words: "The MX host does not offer TLS, or somebody on the way hides that it does."}
	handshake = &Cause{Name: "handshake", tls: true, Steps: []Step{probe, exempt},
		Words: "The MX host offers TLS, but refused to start it, or the handshake failed: the host is broken, has TLS 1.1 or older only, or something on the way interferes."}
	certificate = &Cause{Name: "certificate", tls: true, Steps: []Step{probe, exempt},
		Words: "The MX host's certificate is not good: it has another name, has expired, or is from an authority that this machine does not know."}
	byDANE = &Cause{Name: "dane", tls: true, Steps: []Step{probe, check},
		Words: "The MX host does not pass DANE: its certificate does not match its TLSA records, or these are missing or could not be looked up."}
	putOff = &Cause{Name: "put-off", tls: true, Steps: []Step{again},
		Words: "Exim does not try the hosts again yet, after an earlier failure."}
	eximAsks = &Cause{Name: "exim-lookup", Steps: []Step{check, {"To see what Exim makes of the reply", "exim -bt someone@DOMAIN"}},
		Words: "Exim could not get a usable reply from sts-tlsmap."}
)

// MTAs.
const (
	Postfix  = "Postfix"
	Exim     = "Exim"
	Sendmail = "sendmail"
	Daemon   = "sts-tlsmap" // its replies, in Postfix's log and in Exim's
)

// A Known is a text that an MTA has in its queue for mail that waits.
type Known struct {
	MTA   string
	Text  string // part of the message
	Cause *Cause
}

// Table has all known texts. The first that a message contains counts. Each was seen
// with Debian's Postfix 3.7, 3.10 and 3.11, Exim 4.96, 4.98 and 4.100 or sendmail 8.18.2, or
// stands in this program, unless it says "read".
var Table = []Known{
	{Postfix, "Server certificate not verified", certificate},
	{Postfix, "TLS is required, but was not offered by host", noTLS},
	{Postfix, "refused to start TLS: ", handshake},
	{Postfix, "Cannot start TLS: handshake failure", handshake},
	{Postfix, "server unavailable or unable to receive mail", unlisted},
	{Postfix, "client TLS configuration problem", noReply},
	{Postfix, "no TLSA records found", byDANE},
	{Postfix, "non DNSSEC destination", byDANE},
	{Postfix, "TLSA lookup error for", byDANE},

	{Exim, "The certificate differs", byDANE},
	{Exim, "DANE attempt failed", byDANE},
	{Exim, "DANE error: tlsa lookup", byDANE},
	{Exim, "(certificate verification failed)", certificate},
	{Exim, "certificate verify failed", certificate}, // read: Exim with OpenSSL
	{Exim, "a TLS session is required, but the server did not offer TLS support", noTLS},
	{Exim, "a TLS session is required, but an attempt to start TLS failed", handshake},
	{Exim, "TLS session: (", handshake},
	{Exim, "lookup failed for all hosts in sts_tlsmap router", noHost},
	{Exim, "R=sts_tlsmap defer: host lookup for", dnsFails},
	{Exim, "R=sts_tlsmap T=sts_tlsmap_smtp defer: retry time not reached", putOff},
	{Exim, "sts-tlsmap does not answer", noAnswer},

	{Sendmail, "STS authentication failed", certificate},
	{Sendmail, "not listed in SANs", certificate},
	{Sendmail, "not found in MX list", unlisted},
	{Sendmail, "STS other side does not support STARTTLS", noTLS},
	{Sendmail, "STS authentication failure", handshake},
	{Sendmail, "TLS handshake failed", handshake},
	{Sendmail, "STS lookup temp fail", noReply},
	{Sendmail, "sts map: lookup (", noReply},
	{Sendmail, "DANE check failed", byDANE},
	{Sendmail, "DANE: missing STARTTLS", byDANE}, // read
	{Sendmail, "host name lookup failure for TLSA RR", byDANE},

	{Daemon, "unknown map", unknownMap},
	{Daemon, "stored MTA-STS policy is damaged and could not be fetched again yet", damaged},
	{Daemon, "could not find out whether DANE protects the domain", dnsFails},
	{Daemon, "its MX hosts could not be looked up", dnsFails},
	{Daemon, "this relay could not look for an MTA-STS policy", ourFault},
	{Daemon, "MTA-STS lookup broke off", ourFault},
	{Daemon, "policy lists no usable MX host name", noUsable},
	{Daemon, "policy is too long for a reply", noUsable},
	{Daemon, "none of its MX hosts is listed in its policy", unlisted},
	{Daemon, "none of its MX records names a host", noHost},
	{Daemon, "the DNS says that it takes no mail (null MX), but its policy is enforced", noHost},
	{Daemon, "the DNS says that it does not exist, but its policy is enforced", noHost},

	{Exim, "R=sts_tlsmap_ask defer", eximAsks}, // any other
}

// causeOf returns the cause of a message in the queue of an MTA; nil if it has nothing
// to do with TLS or with sts-tlsmap.
func causeOf(mta, message string) *Cause {
	for _, quote := range []string{" said: ", "SMTP error from remote mail server"} {
		message, _, _ = strings.Cut(message, quote) // the host's own words may be anything
	}
	for _, k := range Table {
		if (k.MTA == mta || k.MTA == Daemon && mta == Exim) && strings.Contains(message, k.Text) {
			return k.Cause
		}
	}
	return nil
}
