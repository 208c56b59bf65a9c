package policy

import (
	"errors"
	"fmt"
	"strings"
)

// maxID is the length of the longest id (RFC 8461, 3.1).
const maxID = 32

// recordPrefix is what a TXT record must begin with to be an MTA-STS record.
// The grammar would let white space stand before the semicolon, but the text
// of 3.1 discards a record that has any there, and erratum 6285 says that the
// text is right. The erratum allows none before any other semicolon either;
// there we take it, as the grammar of the standard does.
const recordPrefix = "v=STSv1;"

// What the TXT records at _mta-sts.DOMAIN can be, other than one good record.
var (
	ErrNoRecord      = errors.New("no MTA-STS record")
	ErrManyRecords   = errors.New("more than one MTA-STS record")
	ErrRecordInvalid = errors.New("broken MTA-STS record")
)

// FindRecord picks the MTA-STS record among the TXT records at
// _mta-sts.DOMAIN, each given as its strings joined without a space. The
// error is ErrNoRecord, ErrManyRecords or ErrRecordInvalid, with more in
// words.
func FindRecord(txts []string) (Record, error) {
	var found []string
	nearly := false
	for _, txt := range txts {
		// RFC 8461, 3.1: others are discarded.
		if strings.HasPrefix(txt, recordPrefix) {
			found = append(found, txt)
		} else if len(txt) >= len("v=STSv1") && equalFold(txt[:len("v=STSv1")], "v=STSv1") {
			nearly = true
		}
	}
	switch {
	case len(found) == 1:
		return ParseRecord(found[0])
	case len(found) > 1:
		return Record{}, fmt.Errorf("%w: %d TXT records begin with %q", ErrManyRecords, len(found), recordPrefix)
	case nearly:
		return Record{}, fmt.Errorf("%w: a TXT record comes close, but does not begin with exactly %q", ErrNoRecord, recordPrefix)
	case len(txts) > 0:
		return Record{}, fmt.Errorf("%w: of the TXT records (%d) none begins with %q", ErrNoRecord, len(txts), recordPrefix)
	}
	return Record{}, ErrNoRecord
}

// ParseRecord parses one TXT record. The error is ErrRecordInvalid, with the
// reason in words.
func ParseRecord(txt string) (Record, error) {
	rest, ok := strings.CutPrefix(txt, recordPrefix)
	if !ok {
		return Record{}, fmt.Errorf("%w: it does not begin with %q", ErrRecordInvalid, recordPrefix)
	}
	var r Record
	fields := strings.Split(rest, ";")
	for i, field := range fields {
		last := i == len(fields)-1
		field = strings.TrimLeft(field, " \t")
		if !last {
			// White space at the record's end is none around a semicolon.
			field = strings.TrimRight(field, " \t")
		}
		if field == "" && last && i > 0 {
			break // one semicolon may end the record
		}
		name, value, _ := strings.Cut(field, "=")
		if !isFieldName(name) || !isRecordValue(value) {
			return Record{}, fmt.Errorf("%w: %s is not of the form name=value", ErrRecordInvalid, quote(field))
		}
		// RFC 8461, 3.2: of a field given twice the first counts, and unknown
		// fields are ignored.
		if name == "id" && r.ID == "" {
			if !isID(value) {
				return Record{}, fmt.Errorf("%w: its id %s is not 1 to %d letters or digits", ErrRecordInvalid, quote(value), maxID)
			}
			r.ID = value
		}
	}
	if r.ID == "" {
		return Record{}, fmt.Errorf("%w: it has no id", ErrRecordInvalid)
	}
	return r, nil
}

func isID(s string) bool {
	if s == "" || len(s) > maxID {
		return false
	}
	for i := range len(s) {
		if !isAlnum(s[i]) {
			return false
		}
	}
	return true
}

// isRecordValue is the value of an extension in the record: visible ASCII
// characters other than "=" and ";" (RFC 8461, 3.1).
func isRecordValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < '!' || c > '~' || c == '=' || c == ';' {
			return false
		}
	}
	return s != ""
}
