// Package report reads TLSRPT records and writes TLS reports as RFC 8460 asks it of a
// sender: the record with its destinations, the JSON of a domain's day, and the mail
// that carries it, signed with DKIM. It asks no DNS and delivers nothing: deliver does.
package report

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// A Config says who reports. Contact and Sender share one domain, the submitter.
type Config struct {
	Organization string // organization-name
	Contact      string // contact-info: a bare address
	Sender       string // From of the mail; empty: Contact

	// Key signs the mail with DKIM (RFC 8460, 3), see ParseKey. Nil: the MTA signs.
	Key      crypto.Signer
	Selector string // of Key, below _domainkey.SUBMITTER
}

// A Reporter writes reports. It is safe for concurrent use.
type Reporter struct {
	config    Config
	submitter string // the domain that reports: of contact, sender and DKIM signature
}

// A ConfigError is a mistake in a Config.
type ConfigError struct {
	Key string // as the configuration file has it
	Err error
}

func (e *ConfigError) Error() string { return e.Key + ": " + e.Err.Error() }

// New returns a reporter. The error is a *ConfigError.
func New(config Config) (*Reporter, error) {
	contact, err := ParseAddress(config.Contact)
	if err != nil {
		return nil, &ConfigError{"contact", err}
	}
	sender, err := ParseAddress(cmp.Or(config.Sender, config.Contact))
	if err != nil {
		return nil, &ConfigError{"sender", err}
	}
	config.Contact, config.Sender = contact.Address, sender.Address
	switch {
	case contact.Host != sender.Host: // RFC 8460, 5.3
		return nil, &ConfigError{"sender", fmt.Errorf("must have the same domain as contact, not %s and %s", sender.Host, contact.Host)}
	case config.Organization == "" || len(config.Organization) > maxOrganization || text.Printable(config.Organization) != config.Organization:
		return nil, &ConfigError{"organization", fmt.Errorf("must be 1 to %d bytes of printable text", maxOrganization)}
	case config.Key != nil && !publicName(config.Selector+".test"):
		return nil, &ConfigError{"dkim_selector", fmt.Errorf("%s is not a DKIM selector", quote(config.Selector))}
	}
	return &Reporter{config: config, submitter: contact.Host}, nil
}

const maxOrganization = 256 // bytes

// Sender is the address in the mail's From, and its envelope sender.
func (r *Reporter) Sender() string { return r.config.Sender }

// NewID returns a report id that no other report has: "20261130.DOMAIN.RANDOM@SUBMITTER".
func (r *Reporter) NewID(day tlsrpt.Day, domain string) string {
	random := strings.ToLower(rand.Text()[:16])
	return fmt.Sprintf("%s.%s.%s@%s", day.Begin().Format("20060102"), domain, random, r.submitter)
}

// A Report is the JSON of RFC 8460, 4.4. Fields without a value are left out, but for
// counts, and for the arrays that readers expect.
type Report struct {
	Organization string    `json:"organization-name"`
	DateRange    DateRange `json:"date-range"`
	Contact      string    `json:"contact-info"`
	ID           string    `json:"report-id"`
	Policies     []Result  `json:"policies"`
}

// A DateRange is the time of a report: RFC 3339, UTC, the last second included.
type DateRange struct {
	Start time.Time `json:"start-datetime"`
	End   time.Time `json:"end-datetime"`
}

// A Result is what is said of one policy.
type Result struct {
	Policy  tlsrpt.Policy   `json:"policy"`
	Summary Summary         `json:"summary"`
	Details []tlsrpt.Detail `json:"failure-details"`
}

// A Summary counts the sessions of a policy.
type Summary struct {
	Successful uint64 `json:"total-successful-session-count"`
	Failed     uint64 `json:"total-failure-session-count"`
}

// Build returns the report of a domain's day.
func (r *Reporter) Build(day tlsrpt.DomainDay, id string) *Report {
	report := &Report{
		Organization: r.config.Organization,
		DateRange:    DateRange{day.Day.Begin(), day.Day.End().Add(-time.Second)}, // RFC 8460, 4.1
		Contact:      r.config.Contact,
		ID:           id,
		Policies:     []Result{},
	}
	for _, s := range day.Policies {
		s.Policy.Strings = append([]string{}, s.Policy.Strings...) // an array, also where it is empty
		report.Policies = append(report.Policies, Result{s.Policy, Summary{s.Successful, s.Failed}, append([]tlsrpt.Detail{}, s.Details...)})
	}
	return report
}

// MaxReport is the size of a compressed report, in bytes. Mail of ten megabytes passes
// almost everywhere (RFC 8460, 5.2), but only a hostile policy makes a report this large.
const MaxReport = 1 << 20

// ErrTooLarge is a report over MaxReport.
var ErrTooLarge = errors.New("the report is too large")

// Compress returns the report as JSON in gzip (RFC 8460, 5.2). The error wraps
// ErrTooLarge.
func (report *Report) Compress() ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if err := json.NewEncoder(w).Encode(report); err != nil {
		return nil, fmt.Errorf("report %s: %w", quote(report.ID), err)
	}
	if w.Close(); b.Len() > MaxReport {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, b.Len())
	}
	return b.Bytes(), nil
}
