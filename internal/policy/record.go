package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/hostname"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

// maxID is the length of the longest id (RFC 8461, 3.1).
const maxID = 32

// version is what an MTA-STS record begins with, before white space and ";".
const version = "v=STSv1"

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
		if _, ok := cutVersion(txt); ok {
			found = append(found, txt)
		} else if strings.HasPrefix(hostname.Lower(txt), hostname.Lower(version)) {
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

// cutVersion returns what follows the version and its semicolon. The text of
// RFC 8461, 3.1 allows no white space between the two, its grammar does: the
// domain asks for protection, so the grammar counts.
func cutVersion(txt string) (rest string, ok bool) {
	if rest, ok = strings.CutPrefix(txt, version); !ok {
		return "", false
	}
	return strings.CutPrefix(strings.TrimLeft(rest, " \t"), ";")
}

// ParseRecord parses one TXT record. The error wraps ErrRecordInvalid.
func ParseRecord(txt string) (Record, error) {
	rest, ok := cutVersion(txt)
	if !ok {
		return Record{}, fmt.Errorf(`%w: it does not begin with "v=STSv1;"`, ErrRecordInvalid)
	}
	var r Record
	hint := ""
	fields := strings.Split(rest, ";")
	for i, field := range fields {
		last := i == len(fields)-1
		field = strings.TrimLeft(field, " \t")
		if !last {
			// The grammar has white space around a semicolon, and none at the
			// record's end.
			field = strings.TrimRight(field, " \t")
		}
		if field == "" && last {
			break // one semicolon may end the record
		}
		name, value, _ := strings.Cut(field, "=")
		if !isFieldName(name) || !isRecordValue(value) {
			return Record{}, fmt.Errorf("%w: %s is not of the form name=value", ErrRecordInvalid, quote(field))
		}
		// RFC 8461, 3.2: of a field given twice the first counts, and unknown
		// fields are ignored.
		switch {
		case name == "id" && r.ID == "":
			if len(value) > maxID || strings.ContainsFunc(value, isNoAlnum) {
				return Record{}, fmt.Errorf("%w: its id %s is not 1 to %d letters or digits", ErrRecordInvalid, quote(value), maxID)
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

// isRecordValue is the value of a field in the record: visible ASCII other than
// "=" and ";" (RFC 8461, 3.1).
func isRecordValue(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return c < '!' || c > '~' || c == '=' || c == ';' })
}

// isFieldName is the name of a field in the record and in the policy file: a
// letter or digit, then up to 31 letters, digits, "_", "-" or "." (RFC 8461, 3.1
// and 3.2).
func isFieldName(s string) bool {
	return s != "" && len(s) <= 32 && !isNoAlnum(rune(s[0])) &&
		!strings.ContainsFunc(s, func(c rune) bool { return isNoAlnum(c) && c != '_' && c != '-' && c != '.' })
}

func isNoAlnum(c rune) bool {
	return (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
}

// quote makes a stranger's text fit for an error: short, printable ASCII.
func quote(s string) string { return text.Quote(s, maxQuoted) }
