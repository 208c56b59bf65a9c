package report

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// The grammar of a record (RFC 8460, 3): an extension's value is visible ASCII other
// than "=" and ";". The text of section 3 allows no white space before the first
// semicolon, its grammar does, and Postfix takes it.
var (
	recordStart    = regexp.MustCompile(`^v=TLSRPTv1[ \t]*;`)
	fieldDelimiter = regexp.MustCompile(`[ \t]*;[ \t]*`)
	fieldName      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$`)
	extensionValue = regexp.MustCompile(`^[!-:<>-~]+$`)
)

// ErrNoRecord: the domain wants no reports, since it has no TLSRPT record, more than one,
// or a broken one.
var ErrNoRecord = errors.New("no usable record")

// MaxDestinations is how many URIs of a record are used: the first that can be.
const MaxDestinations = 5

// RecordName is where a domain's TLSRPT record is (RFC 8460, 3).
func RecordName(domain string) string { return "_smtp._tls." + domain }

// FindRecord picks the TLSRPT record among the TXT records at _smtp._tls.DOMAIN, each
// given as its strings joined without a space (RFC 8460, 3), and returns where it wants
// reports: 1 to MaxDestinations different destinations. The error wraps ErrNoRecord.
func FindRecord(txts []string) ([]Destination, error) {
	// RFC 8460, 3: all others are discarded.
	found := slices.DeleteFunc(slices.Clone(txts), func(txt string) bool { return !recordStart.MatchString(txt) })
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: no TLSRPT record", ErrNoRecord)
	case 1:
		return parseRecord(found[0])
	}
	return nil, fmt.Errorf(`%w: %d TXT records begin with "v=TLSRPTv1;"`, ErrNoRecord, len(found))
}

func parseRecord(txt string) ([]Destination, error) {
	var found []Destination
	unusable := errors.New("it has no rua")
	fields := fieldDelimiter.Split(txt, -1)[1:]
	for i, field := range fields {
		if field == "" && i == len(fields)-1 {
			break // a semicolon may end the record
		}
		name, value, _ := strings.Cut(field, "=")
		if name != "rua" {
			if !fieldName.MatchString(name) || !extensionValue.MatchString(value) {
				return nil, fmt.Errorf("%w: %s is not of the form name=value", ErrNoRecord, quote(field))
			}
			continue // RFC 8460, 3: unknown fields are ignored
		}
		for uri := range strings.SplitSeq(value, ",") {
			d, err := ParseDestination(strings.Trim(uri, " \t"))
			if err != nil {
				unusable = err
			} else if len(found) < MaxDestinations && !slices.Contains(found, d) {
				found = append(found, d)
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: %w", ErrNoRecord, unusable)
	}
	return found, nil
}

// quote makes a stranger's text fit for an error: short, printable ASCII.
func quote(s string) string { return text.Quote(s, 80) }
