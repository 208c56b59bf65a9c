// Package explain writes the texts of -explain, -cache and the status page's box:
// what becomes of mail to a domain and what to do, what the domain publishes, what the
// cache holds for it, and what each map replies and why. Gather looks everything up again; FromHeld and WriteHeld
// use only what is held. Package tlsmap decides the replies.
//
// Text from the network is printed through text.Printable.
package explain

import (
	"context"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// A Resolver asks the DNS; *resolver.Resolver is one.
type Resolver interface {
	Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error)
}

// A Discoverer finds policies; *policy.Client is one.
type Discoverer interface {
	Record(ctx context.Context, domain string) (policy.Record, time.Duration, error)
	Fetch(ctx context.Context, domain string, gate policy.Gate) (*policy.Fetched, error)
}

// NextHops looks at a next-hop through the DNS; *dane.Checker is one.
type NextHops interface {
	Probe(ctx context.Context) dane.Probe
	Look(ctx context.Context, n dane.NextHop, listed func(host string) bool) *dane.Report
	MX(ctx context.Context, domain string) (*dane.MXSet, error)
}

// Sources are what a Report is gathered from.
type Sources struct {
	Resolver Resolver
	Policies Discoverer
	NextHops NextHops
	Table    *tlsmap.Table // the maps in use
	MapsOf   string        // a title for them
	// Held returns what is held for a domain and where: Daemon or File. The error
	// is control.ErrNothingHeld if nothing is held.
	Held func(ctx context.Context, domain string) (control.Held, string, error)
	// NotAsked is why the daemon could not be asked, one of control's errors,
	// and AskHint what to do about it. Nil: it answers.
	NotAsked error
	AskHint  string
	Now      func() time.Time
}

// Where a Held was found.
const (
	Daemon = "daemon"
	File   = "file"
)

// A Report is every step to the answer for one next-hop.
type Report struct {
	Key    string `json:"key"`              // as asked
	Domain string `json:"domain,omitempty"` // the policy domain; empty: there is none
	NoKey  string `json:"no_policy_domain,omitempty"`

	Record *Record `json:"record,omitempty"`
	Fetch  *Fetch  `json:"fetch,omitempty"`
	MX     *MX     `json:"mx,omitempty"`
	DANE   *DANE   `json:"dane,omitempty"`
	Cache  *Cache  `json:"cache,omitempty"`
	Maps   []Reply `json:"maps,omitempty"`
	Next   string  `json:"next"` // what becomes of mail, and what to do

	now      time.Time
	policy   *policy.Policy     // the one that counts; nil if none does
	state    tlsmap.PolicyState // of the policy
	hint     string             // what to do about a failed discovery; empty: it did not fail
	ours     bool               // it failed for a fault of our own
	mapsOf   string             // a title
	exemptBy []exempt.Exemption // the exemptions of the domain
	mxSet    *dane.MXSet
	mxErr    error
}

// A Record is what the DNS said about the TXT record.
type Record struct {
	Name          string        `json:"name"`
	Answer        string        `json:"answer"` // NOERROR, NXDOMAIN, or why there was none
	Authenticated bool          `json:"authenticated"`
	CNAMEs        []string      `json:"cnames,omitempty"`
	Texts         []string      `json:"texts,omitempty"` // as the DNS writes them
	ID            string        `json:"id,omitempty"`
	Result        policy.Result `json:"result"`
	Err           string        `json:"error,omitempty"`
}

// A Fetch is what the policy host said.
type Fetch struct {
	URL      string        `json:"url"`
	Address  string        `json:"address,omitempty"`
	Millis   int64         `json:"milliseconds,omitempty"`
	Issuer   string        `json:"certificate_issuer,omitempty"`
	NotAfter time.Time     `json:"certificate_expires,omitzero"`
	Result   policy.Result `json:"result"`
	Err      string        `json:"error,omitempty"`
	Text     string        `json:"text,omitempty"`
	Mode     string        `json:"mode,omitempty"`
	MaxAge   int64         `json:"max_age,omitempty"` // seconds
	Patterns []string      `json:"mx,omitempty"`

	policy *policy.Policy // nil: the fetch failed
}

// MX is where mail for the domain goes.
type MX struct {
	Answer        string `json:"answer"`
	Authenticated bool   `json:"authenticated"`
	Hosts         []Host `json:"hosts,omitempty"`
	Note          string `json:"note,omitempty"` // null MX, no MX records
}

// A Host is an MX host.
type Host struct {
	Name       string `json:"name"`
	Preference uint16 `json:"preference"`
	Listed     *bool  `json:"listed,omitempty"` // by the policy that counts, in terms that an MTA takes; nil: there is none
}

// DANE is the DANE of the next-hop (RFC 7672), and of the resolver that authenticates
// the answers.
type DANE struct {
	Resolver  string     `json:"resolver"` // whether it validates
	Validates *bool      `json:"validates,omitempty"`
	State     string     `json:"state"`
	Why       string     `json:"why"`
	Hosts     []DANEHost `json:"hosts,omitempty"`
	Beyond    int        `json:"hosts_not_looked_at,omitempty"`

	// Held is what the daemon holds, and answers from; nil: it asks anew.
	Held *control.DANE `json:"held,omitempty"`

	hop     string // as control.DANE has it; empty: a service that is not known
	finding dane.Finding
	counts  dane.Finding // what the maps answer from: what is held, else the finding
	asked   bool         // a map asks for it under the policy that counts
}

// A DANEHost is a host of the next-hop.
type DANEHost struct {
	Name       string `json:"name"`
	Preference uint16 `json:"preference"`
	State      string `json:"state"`
	Failed     string `json:"failed,omitempty"` // the first question that got no answer, as dig takes it
}

// Cache is what is held of the domain.
type Cache struct {
	From   string        `json:"from"` // Daemon, File, or empty
	Held   *control.Held `json:"held,omitempty"`
	Err    string        `json:"error,omitempty"`
	Counts string        `json:"counts,omitempty"` // "held" or "live": which policy a lookup is answered from now

	err      error  // whose text is Err
	notAsked error  // as in Sources
	askHint  string // what to do if the daemon could not be asked but may be running
}

// A Reply is what a map replies, and why.
type Reply struct {
	Map   string `json:"map"`
	Reply string `json:"reply"`
	Why   string `json:"why"`
	Would string `json:"would,omitempty"` // of a rehearsal

	applies  bool // the map applies the policy that counts
	deferred bool // the mail waits, or would without the rehearsal
}

// Found says whether there is a policy that a lookup is answered from.
func (r *Report) Found() bool { return r.policy != nil }
