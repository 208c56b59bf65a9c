// Package control is the admin interface: HTTP and JSON over a unix socket,
// for the program's own flags. Whoever can open the socket may read; what
// changes something is for root and the daemon's own user, whom the kernel
// names (SO_PEERCRED, unix(7)). The paths are internal to the program and may
// change with any version; what people and scripts use are the flags.
//
//	GET  /v1/health            what runs here
//	GET  /v1/stats             numbers
//	GET  /metrics              the same for Prometheus
//	GET  /v1/cache             the cache, an Entry a line, then an End
//	GET  /v1/cache/DOMAIN      what is held of a domain
//	POST /v1/refresh           check and fetch domains now, a Refreshed a line, then an End
//	POST /v1/forget            drop domains, a Forgotten a line, then an End
//	POST /v1/forget-failures   forget all failures to find a policy, a ForgottenFailures
//	GET  /v1/exempt            exemptions set at run time, an Exemption a line, then an End
//	POST /v1/exempt            exempt a domain for a time, or end that
//	POST /v1/learn             take policies over and discover domains, a Learned a line, then an End
//	GET  /v1/rehearsal         what rehearsed maps would have replied, a Rehearsed a line, then an End
package control

import (
	"context"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// Limits of the control socket.
const (
	// MaxConnections is how many clients are served at once; more wait.
	MaxConnections = 32
	// ownConnections is how many more may be root's and the daemon's user's.
	ownConnections = 8
	// maxWaiting is how many clients may wait; one more is hung up on.
	maxWaiting = 64
	// MaxDomains is how many domains one request may name.
	MaxDomains = 1000

	maxListings   = 4                // at once; a page of records is in memory for each
	ownListings   = 2                // and more of root's and the daemon's user's
	pageSize      = 64               // records read from the store at once
	maxBody       = 512 << 10        // bytes of a request's body: MaxDomains names
	maxExemptBody = 16 << 10         // bytes of the body of a request to exempt
	writeTimeout  = 10 * time.Second // for a page, or a line, to be taken by the client

	refreshAtOnce = 16 // refreshes at once for one request
	forgetAtOnce  = 64 // so that they share commits
)

// A Keeper holds the policies; *keeper.Keeper is one.
type Keeper interface {
	Get(domain string) (cache.Record, error)
	List(after string, limit int) (list []cache.Record, next string, err error)
	Refresh(ctx context.Context, domain string) (keeper.Refreshed, error)
	Forget(ctx context.Context, domain string) (held, failure bool, err error)
	ForgetFailures() int
	Negative(domain string) (keeper.Negative, bool)
}

// Health says what runs.
type Health struct {
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	Started   time.Time `json:"started"`
	Config    string    `json:"config"`    // the file; empty: defaults
	Listeners []string  `json:"listeners"` // the socketmap's, as "inet:127.0.0.1:8461"
	Cache     string    `json:"cache"`
	Metrics   string    `json:"metrics,omitempty"` // where they are served beside here, as "inet:127.0.0.1:9461"
	Control   string    `json:"control"`           // the path of this socket

	Maps []mta.Map `json:"maps"` // that lookups are answered in; none: a version that does not tell

	// Overridden are the keys of the file that do not count, since systemd has
	// passed sockets.
	Overridden []string `json:"overridden,omitempty"`

	// Lost is what rehearsals have lost of what they would have replied.
	Lost tlsmap.RehearsalsLost `json:"rehearsals_lost"`

	Troubles []Trouble `json:"troubles"` // what is wrong; empty: nothing
}

// A Trouble is a condition in which an operator has to act; package observe
// tells them.
type Trouble struct {
	Condition string `json:"condition"`
	Severity  string `json:"severity"` // page or ticket
	What      string `json:"what"`
	Next      string `json:"next"` // what to do
}

// An Entry is a policy that is held, as -cache -json prints it.
type Entry struct {
	Domain    string    `json:"domain"`
	Mode      string    `json:"mode"`
	ID        string    `json:"id,omitempty"`
	PendingID string    `json:"pending_id,omitempty"`
	Fetched   time.Time `json:"fetched,omitzero"`
	Expires   time.Time `json:"expires,omitzero"`
	Checked   time.Time `json:"checked,omitzero"`
	Used      time.Time `json:"used,omitzero"`
	Due       time.Time `json:"due,omitzero"`
	Failures  uint32    `json:"failures,omitempty"`
	FailedAt  time.Time `json:"failed_at,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	Policy    string    `json:"policy,omitempty"` // the text as served; left out of a summary
}

// EntryOf returns the record as an Entry.
func EntryOf(r *cache.Record) Entry {
	return Entry{
		Domain: r.Domain, Mode: r.Mode.String(), ID: r.ID, PendingID: r.PendingID,
		Fetched: utc(r.Fetched), Expires: utc(r.Expires), Checked: utc(r.Checked), Used: utc(r.Used), Due: utc(r.Due),
		Failures: r.Failures, FailedAt: utc(r.FailedAt), LastError: r.LastError,
		Policy: string(r.Text),
	}
}

func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}

// Held is all that is held of one domain.
type Held struct {
	Domain   string    `json:"domain"`
	Entry    *Entry    `json:"entry,omitempty"`
	Damaged  string    `json:"damaged,omitempty"` // a policy is held and cannot be read: why
	Negative *Negative `json:"negative,omitempty"`
	Exempt   bool      `json:"exempt,omitempty"`
	// ExemptUntil is when that ends; zero: it is for good.
	ExemptUntil time.Time `json:"exempt_until,omitzero"`
	// ExemptBy are the entries that exempt the domain.
	ExemptBy  []ExemptEntry `json:"exempt_by,omitempty"`
	Rehearsed []Rehearsed   `json:"rehearsed,omitempty"`
	// DANE is what is held of next-hops of that name, which maps with DANE
	// answer from. It alone is not held of the domain.
	DANE []DANE `json:"dane,omitempty"`
}

// An ExemptEntry exempts a domain, or all below it where it begins with a dot.
type ExemptEntry struct {
	Entry string    `json:"entry"`
	Until time.Time `json:"until,omitzero"` // zero: for good, by [exempt] in the configuration
}

// ExemptEntries are exemptions, of which those without an end have no Until.
func ExemptEntries(list []exempt.Exemption) []ExemptEntry {
	var entries []ExemptEntry
	for _, x := range list {
		entries = append(entries, ExemptEntry{Entry: x.Domain, Until: utc(x.Until)})
	}
	return entries
}

// A DANE is what is held of the DANE of a next-hop.
type DANE struct {
	NextHop string     `json:"next_hop"` // as an MTA asks for it: "[mx.example.com]:587"
	State   dane.State `json:"state"`
	Why     string     `json:"why"`
	Hosts   []string   `json:"hosts,omitempty"` // those that mail may go to, where lookups at others fail
	Until   time.Time  `json:"until"`
	Kept    bool       `json:"kept,omitempty"` // from before: nothing vouches for what the DNS says now
}

// Nothing says whether nothing is held.
func (h *Held) Nothing() bool {
	return h.Entry == nil && h.Negative == nil && h.Damaged == "" && !h.Exempt && len(h.Rehearsed) == 0
}

// A Negative is a discovery that found no policy, and is not tried again
// before Until.
type Negative struct {
	Result policy.Result `json:"result"`
	Err    string        `json:"error,omitempty"`
	Until  time.Time     `json:"until"`
}

// Refreshed is what came of a refresh of one domain.
type Refreshed = keeper.Refreshed

// Forgotten is what came of forgetting one domain.
type Forgotten struct {
	Domain string `json:"domain"`
	Found  bool   `json:"found"` // a policy was held

	// Failure says that a failure to find one was remembered.
	Failure bool   `json:"failure,omitempty"`
	Err     string `json:"error,omitempty"`
}

// ForgottenFailures is what came of forgetting all failures to find a policy.
type ForgottenFailures struct {
	Count int `json:"count"`
}

// An End is the last line of every answer of several lines: without one, the
// answer was cut off.
type End struct {
	End bool   `json:"end"`
	Err string `json:"error,omitempty"` // why it ends early
}

// request is the body of refresh and forget.
type request struct {
	Domains []string `json:"domains"`
}

// failure is the body of an answer that is an error.
type failure struct {
	Err string `json:"error"`
}
