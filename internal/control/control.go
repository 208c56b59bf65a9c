// Package control is the admin interface: HTTP and JSON over a unix socket, for
// the program's own flags. Whoever can open the socket may read; changes need
// root or the daemon's own user, as the kernel names the peer (SO_PEERCRED,
// unix(7)). The paths are internal to the program and may change with any
// version; people and scripts use the flags.
package control

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/cache"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/fleet"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsmap"
)

// Limits of the control socket.
const (
	MaxClients      = 32               // connections at once; one more is closed
	reservedClients = 8                // and more for root and the daemon's user only
	requestTimeout  = 10 * time.Second // for a request to arrive
	idleTimeout     = time.Minute      // without a request
	maxHeader       = 16 << 10         // bytes of a request's header
	maxBody         = 4 << 20          // bytes of a request's body
	atOnce          = 32               // domains of one request worked on at once
	shownDomains    = 5                // of a request, in the log
	pageSize        = 16               // records read from the store at once
	flushAt         = 32 << 10         // bytes of an answer, after which they are sent
	fleetTimeout    = 3 * time.Second  // for the fleet's server to say which relays there are
	writeTimeout    = 10 * time.Second // for the client to take a line
)

// Health says what runs.
type Health struct {
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	Started   time.Time `json:"started"`
	Config    string    `json:"config"`    // the file; empty: defaults
	Listeners []string  `json:"listeners"` // the socketmap's, as "inet:127.0.0.1:8461"
	Cache     string    `json:"cache"`
	Metrics   string    `json:"metrics,omitempty"` // where else they are served, as "inet:127.0.0.1:9461"
	Control   string    `json:"control"`           // this socket, as "unix:/run/sts-tlsmap/control.sock"

	Maps       []mta.Map `json:"maps"`                 // empty: an older version, which does not tell
	Asked      []string  `json:"asked,omitempty"`      // names of maps with lookups since the start
	Overridden []string  `json:"overridden,omitempty"` // keys without effect, since systemd passed sockets

	Troubles []Trouble `json:"troubles"`
	ClockOff int64     `json:"clock_off,omitempty"` // seconds by which the clock is ahead of the time by which policies live

	UnknownMap string    `json:"unknown_map,omitempty"` // the last map asked for that does not exist
	UnknownAt  time.Time `json:"unknown_at,omitzero"`
}

// A Trouble is a condition that needs an operator; package observe finds them.
type Trouble struct {
	Condition string `json:"condition"`
	Severity  string `json:"severity"` // page or ticket
	What      string `json:"what"`
	Next      string `json:"next"` // what to do
}

// An Entry is a policy in the cache, as -cache -json prints it. In a request it
// may be a domain alone.
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
	Policy    string    `json:"policy,omitempty"` // the text as served
	NotOnDisk bool      `json:"not_on_disk,omitempty"`

	WhyNotOnDisk string `json:"why_not_on_disk,omitempty"`
}

// EntryOf returns the record as an Entry.
func EntryOf(r *cache.Record) Entry {
	return Entry{
		Domain: r.Domain, Mode: r.Mode.String(), ID: r.ID, PendingID: r.PendingID,
		Fetched: r.Fetched.UTC(), Expires: r.Expires.UTC(), Checked: r.Checked.UTC(), Used: r.Used.UTC(), Due: r.Due.UTC(),
		Failures: r.Failures, FailedAt: r.FailedAt.UTC(), LastError: r.LastError,
		Policy: string(r.Text), NotOnDisk: r.NotOnDisk != "", WhyNotOnDisk: r.NotOnDisk,
	}
}

// Held is all that is held for one domain.
type Held struct {
	Domain   string           `json:"domain"`
	Entry    *Entry           `json:"entry,omitempty"`
	Damaged  string           `json:"damaged,omitempty"` // why the policy that is held cannot be read
	Negative *keeper.Negative `json:"negative,omitempty"`
	Exempt   bool             `json:"exempt,omitempty"`
	// ExemptUntil is when the exemption ends; zero: never.
	ExemptUntil time.Time          `json:"exempt_until,omitzero"`
	ExemptBy    []exempt.Exemption `json:"exempt_by,omitempty"`
	Rehearsed   []tlsmap.Rehearsed `json:"rehearsed,omitempty"`
	// DANE is what maps with DANE answer from for next hops of that name.
	DANE []DANE `json:"dane,omitempty"`
}

// NewHeld makes a Held from the record or error of the store's Get, and from the
// exemptions. A damaged policy is no error.
func NewHeld(domain string, rec cache.Record, err error, exemptBy []exempt.Exemption) (Held, error) {
	h := Held{Domain: domain, Exempt: len(exemptBy) > 0, ExemptBy: exemptBy}
	permanent := func(e exempt.Exemption) bool { return e.Until.IsZero() }
	if h.Exempt && !slices.ContainsFunc(h.ExemptBy, permanent) {
		h.ExemptUntil = slices.MaxFunc(h.ExemptBy, func(a, b exempt.Exemption) int { return a.Until.Compare(b.Until) }).Until
	}
	var damaged *cache.DamagedError
	switch {
	case err == nil:
		e := EntryOf(&rec)
		h.Entry = &e
	case errors.As(err, &damaged):
		h.Damaged = err.Error()
	case !errors.Is(err, cache.ErrNotFound):
		return Held{}, fmt.Errorf("the cache cannot be read: %w", err)
	}
	return h, nil
}

// Nothing reports whether nothing is held. DANE alone does not count: it
// belongs to a next hop.
func (h *Held) Nothing() bool {
	return h.Entry == nil && h.Negative == nil && h.Damaged == "" && !h.Exempt && len(h.Rehearsed) == 0
}

// A DANE is what is held about DANE for a next hop.
type DANE struct {
	NextHop string     `json:"next_hop"` // as an MTA asks for it: "[mx.example.com]:587"
	State   dane.State `json:"state"`
	Why     string     `json:"why"`
	Hosts   []string   `json:"hosts,omitempty"` // if lookups fail at some hosts: the others, which mail may go to
	Until   time.Time  `json:"until"`
	Kept    bool       `json:"kept,omitempty"` // from before: the DNS does not confirm it now
}

// Forgotten is the result of forgetting one domain.
type Forgotten struct {
	Domain  string `json:"domain"`
	Found   bool   `json:"found"`             // a policy was held
	Failure bool   `json:"failure,omitempty"` // a failure to find one was remembered
	Err     string `json:"error,omitempty"`
}

// An Exemption is the result of exempting a domain, or of ending that.
type Exemption struct {
	Until time.Time          `json:"until,omitzero"`  // zero: it has ended
	Was   bool               `json:"was,omitempty"`   // there was one before
	Err   string             `json:"error,omitempty"` // it is in force, but not on disk
	Still []exempt.Exemption `json:"still,omitempty"` // what exempts the domain after its own has ended
}

// A Fleet is what is known of the relays that share policies.
type Fleet struct {
	fleet.Stats
	Members []fleet.Relay `json:"members"`
	Keys    int64         `json:"keys"`            // in the engine, others' included; -1: it does not say
	Err     string        `json:"error,omitempty"` // why Members are not known
}

// An Order is what an administrator has all relays of the fleet do.
type Order struct {
	Do     string // exempt, forget or refresh
	Domain string
	For    time.Duration // how long an exemption lasts; zero ends it
}

// An End is the last line of an answer in lines.
type End struct {
	End bool   `json:"end"`
	Err string `json:"error,omitempty"` // why it ends early
}

// failure is an answer that is an error, or the line of a domain that failed.
type failure struct {
	Domain string `json:"domain,omitempty"`
	Err    string `json:"error"`
}
