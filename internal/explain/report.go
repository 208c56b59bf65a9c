// Package explain is the words of -explain and -cache: what a domain
// publishes, what is held of it, what each map replies and why, and what to
// try next. A Report is gathered live; it is printed for people, or as JSON.
// Whatever comes from the network is printed without its control characters.
package explain

import (
	"context"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
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

// Sources are what a Report is gathered from.
type Sources struct {
	Resolver Resolver
	Policies Discoverer
	NextHops NextHops
	Table    *tlsmap.Table // the maps of the file
	// Running are the maps of the daemon, which it got when it started; none:
	// they are not known, and those of the file stand in.
	Running []mta.Map
	// Exempt returns the entries of [exempt] in the file that are for a domain.
	// Where the daemon was asked, it decides, and the file is compared with it.
	Exempt func(domain string) []control.ExemptEntry
	// Held returns what is held of a domain and where: Daemon or File. An
	// error that is control.ErrNothingHeld means that it is nothing.
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
	// Stale says in what the daemon is not as the configuration file has it.
	Stale []string `json:"not_in_force,omitempty"`
	Next  string   `json:"next"`

	now    time.Time
	policy *policy.Policy // the one that counts; nil if none does

	mapsOf      string                // whose the maps are: Daemon or File
	stale       string                // what to do about Stale
	exemptBy    []control.ExemptEntry // what exempts the domain; none: it is not
	policyState tlsmap.PolicyState
	namesNone   bool        // the policy that counts lists no host in terms that an MTA takes
	mxSet       *dane.MXSet // as map exim has it
	mxErr       error
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

	hint string
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

	hint    string
	fetched *policy.Fetched
}

// MX is where mail for the domain goes.
type MX struct {
	Answer        string `json:"answer"`
	Authenticated bool   `json:"authenticated"`
	Hosts         []Host `json:"hosts,omitempty"`
	More          int    `json:"more_hosts,omitempty"` // that are not in Hosts
	Note          string `json:"note,omitempty"`       // null MX, no MX records
}

// A Host is an MX host.
type Host struct {
	Name       string `json:"name"`
	Preference uint16 `json:"preference"`
	Listed     *bool  `json:"listed,omitempty"` // by the policy that counts, in terms that an MTA takes; nil: there is none
	// Unusable: the policy lists it, but as a name that no MTA can be given.
	Unusable bool `json:"unusable,omitempty"`
}

// Cache is what is held of the domain.
type Cache struct {
	From   string        `json:"from"` // Daemon, File, or empty
	Held   *control.Held `json:"held,omitempty"`
	Err    string        `json:"error,omitempty"`
	Counts string        `json:"counts,omitempty"` // "held" or "live": which policy a lookup is answered from now

	err      error // whose text is Err
	notAsked error // as in Sources
	askHint  string
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
