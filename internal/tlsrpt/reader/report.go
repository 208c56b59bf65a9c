package reader

import (
	"encoding/json"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// A Report is the JSON of RFC 8460, 4.4, as a stranger wrote it: package report writes
// it strictly, this type reads it tolerantly. Numbers may be strings, and single values
// stand for arrays.
type Report struct {
	Organization string `json:"organization-name"`
	DateRange    struct {
		Start string `json:"start-datetime"`
		End   string `json:"end-datetime"`
	} `json:"date-range"`
	Contact  json.RawMessage `json:"contact-info,omitempty"`
	ID       json.RawMessage `json:"report-id,omitempty"` // some senders have a number
	Policies List[Result]    `json:"policies"`            // nil: it is no TLS report
}

// A Result is what is said of one policy.
type Result struct {
	Policy struct {
		Type     string       `json:"policy-type"`
		Strings  List[string] `json:"policy-string"`
		Domain   string       `json:"policy-domain"`
		MXHosts  List[string] `json:"mx-host,omitempty"`
		Patterns List[string] `json:"mx-host-pattern,omitempty"` // its name in drafts, and in some reports
	} `json:"policy"`
	Summary struct {
		Successful json.Number `json:"total-successful-session-count"`
		Failed     json.Number `json:"total-failure-session-count"`
	} `json:"summary"`
	Details List[Detail] `json:"failure-details"`
}

// A Detail is one way in which sessions failed.
type Detail struct {
	Result      string          `json:"result-type"`
	SendingIP   string          `json:"sending-mta-ip,omitempty"`
	MXHost      string          `json:"receiving-mx-hostname,omitempty"`
	HELO        string          `json:"receiving-mx-helo,omitempty"`
	ReceivingIP string          `json:"receiving-ip,omitempty"`
	Sessions    json.Number     `json:"failed-session-count"`
	More        json.RawMessage `json:"additional-information,omitempty"`
	Reason      string          `json:"failure-reason-code,omitempty"`
}

// maxCount is far above the sessions with a domain in a day, and too small for the sums of
// a hundred thousand reports to overflow.
const maxCount = 1_000_000_000

// count returns a number of sessions, at most maxCount.
func count(n json.Number) uint64 {
	f, _ := n.Float64()
	return uint64(max(0, min(f, maxCount)))
}

// Day returns the day on which the report begins, as its sender writes it; "" if it is no date.
func (r *Report) Day() tlsrpt.Day {
	day := tlsrpt.Day(r.DateRange.Start[:min(len(r.DateRange.Start), len("2006-01-02"))])
	if day.Begin().IsZero() {
		return ""
	}
	return day
}

// List is an array. Another value is taken for its only element.
type List[T any] []T

// UnmarshalJSON implements json.Unmarshaler.
func (l *List[T]) UnmarshalJSON(b []byte) error {
	if b[0] == '[' || b[0] == 'n' {
		return json.Unmarshal(b, (*[]T)(l))
	}
	*l = make([]T, 1)
	return json.Unmarshal(b, &(*l)[0])
}

// MarshalJSON implements json.Marshaler. An empty list is an array too.
func (l List[T]) MarshalJSON() ([]byte, error) { return json.Marshal(append([]T{}, l...)) }
