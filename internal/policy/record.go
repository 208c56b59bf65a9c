package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// The grammar of a record (RFC 8461, 3.1): a value is visible ASCII other than
// "=" and ";". The policy file has the same names. The text of 3.1 allows no
// white space before the first semicolon, its grammar does: the domain asks for
// protection, so the grammar counts.
var (
	recordStart     = regexp.MustCompile(`^v=STSv1[ \t]*;`)
	recordDelimiter = regexp.MustCompile(`[ \t]*;[ \t]*`)
	recordValue     = regexp.MustCompile(`^[!-:<>-~]+$`)
	recordID        = regexp.MustCompile(`^[A-Za-z0-9]{1,32}$`)
)

// isFieldName says whether s is the name of a field of a record or a policy file.
func isFieldName(s string) bool {
	for i, c := range []byte(s) {
		alphanumeric := 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9'
		if !alphanumeric && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return 0 < len(s) && len(s) <= 32
}

// What the TXT records at _mta-sts.DOMAIN can be, other than one good record.
var (
	ErrNoRecord      = errors.New("no MTA-STS record")
	ErrManyRecords   = errors.New("more than one MTA-STS record")
	ErrRecordInvalid = errors.New("broken MTA-STS record")
)

// A Record is a parsed TXT record at _mta-sts.DOMAIN (RFC 8461, 3.1).
type Record struct {
	ID string // 1 to 32 letters or digits
}

// FindRecord picks the MTA-STS record among the TXT records at
// _mta-sts.DOMAIN, each given as its strings joined without a space. The error
// wraps ErrNoRecord, ErrManyRecords or ErrRecordInvalid.
func FindRecord(txts []string) (Record, error) {
	var found []string
	var similar string
	for _, txt := range txts {
		// RFC 8461, 3.1: all others are discarded.
		if recordStart.MatchString(txt) {
			found = append(found, txt)
		} else if strings.HasPrefix(hostname.Lower(txt), "v=stsv1") {
			similar = txt
		}
	}
	switch {
	case len(found) == 1:
		return ParseRecord(found[0])
	case len(found) > 1:
		return Record{}, fmt.Errorf(`%w: %d TXT records begin with "v=STSv1;"`, ErrManyRecords, len(found))
	case similar != "":
		return Record{}, fmt.Errorf(`%w: the TXT record %s does not begin with exactly "v=STSv1;"`, ErrNoRecord, quote(similar))
	case len(txts) > 0:
		return Record{}, fmt.Errorf(`%w: none of the TXT records (%d) begins with "v=STSv1;"`, ErrNoRecord, len(txts))
	}
	return Record{}, ErrNoRecord
}

// ParseRecord parses one TXT record. The error wraps ErrRecordInvalid.
func ParseRecord(txt string) (Record, error) {
	if !recordStart.MatchString(txt) {
		return Record{}, fmt.Errorf(`%w: it does not begin with "v=STSv1;"`, ErrRecordInvalid)
	}
	var r Record
	hint := ""
	fields := recordDelimiter.Split(txt, -1)[1:]
	for i, field := range fields {
		if field == "" && i == len(fields)-1 {
			break // a semicolon may end the record
		}
		name, value, _ := strings.Cut(field, "=")
		if !isFieldName(name) || !recordValue.MatchString(value) {
			return Record{}, fmt.Errorf("%w: %s is not of the form name=value", ErrRecordInvalid, quote(field))
		}
		// RFC 8461, 3.2: of a field given twice the first counts, and unknown
		// fields are ignored.
		switch {
		case name == "id" && r.ID == "":
			if !recordID.MatchString(value) {
				return Record{}, fmt.Errorf("%w: its id %s is not 1 to 32 letters or digits", ErrRecordInvalid, quote(value))
			}
			r.ID = value
		case hostname.Lower(name) == "id":
			hint = fmt.Sprintf(" (names are case-sensitive: %q is another field)", name)
		}
	}
	if r.ID == "" {
		return Record{}, fmt.Errorf("%w: it has no id%s", ErrRecordInvalid, hint)
	}
	return r, nil
}

// quote makes a stranger's text fit for an error: short, printable ASCII.
func quote(s string) string { return text.Quote(s, maxQuoted) }
