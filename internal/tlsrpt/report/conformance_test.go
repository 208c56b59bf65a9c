package report_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/mail"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// keys reads one JSON value, and returns the names of its objects. A name that comes
// twice in one object is an error (RFC 7493, 2.3).
func keys(t *testing.T, d *json.Decoder) (all []string) {
	t.Helper()
	token := func() json.Token {
		next, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	switch token() {
	case json.Delim('['):
		for d.More() {
			all = append(all, keys(t, d)...)
		}
		token()
	case json.Delim('{'):
		var own []string
		for d.More() {
			name, _ := token().(string)
			if slices.Contains(own, name) {
				t.Errorf("%s comes twice", name)
			}
			own = append(own, name)
			all = append(all, keys(t, d)...)
		}
		token()
		all = append(all, own...)
	}
	return all
}

func TestRFC8460_4_TheReportIsIJSON(t *testing.T) {
	text := built(t, example(), exampleID)
	d := json.NewDecoder(bytes.NewReader(text))
	if names := keys(t, d); !slices.Contains(names, "failed-session-count") || !utf8.Valid(text) {
		t.Errorf("got %q", names)
	}
	if _, err := d.Token(); err != io.EOF {
		t.Errorf("after the object: %v", err)
	}
}

func TestRFC8460_5_6_TheMailSaysWhatTheJSONSays(t *testing.T) {
	text, compressed := message(t, newReporter(t, nil))
	m, err := mail.ReadMessage(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var r report.Report
	if err := json.Unmarshal(unzip(t, compressed), &r); err != nil {
		t.Fatal(err)
	}
	_, submitter, _ := strings.Cut(r.Contact, "@")
	subject := "Report Domain: " + r.Policies[0].Policy.Domain + " Submitter: " + submitter + " Report-ID: <" + r.ID + ">"
	if m.Header.Get("Subject") != subject || m.Header.Get("TLS-Report-Submitter") != submitter || m.Header.Get("TLS-Report-Domain") != r.Policies[0].Policy.Domain {
		t.Errorf("got %q; want %q", m.Header, subject)
	}
}

func TestRFC8460_8_OnlyTheReasonsSaySomethingOfTheSoftware(t *testing.T) {
	day := example()
	for i := range day.Policies[0].Details {
		day.Policies[0].Details[i].Reason = ""
	}
	text, _ := message(t, newReporter(t, nil))
	for _, word := range []string{"postfix", "exim", "openssl", "tlsmap", "golang", "go-", "x-mailer", "user-agent"} {
		if strings.Contains(strings.ToLower(string(built(t, day, exampleID))), word) {
			t.Errorf("the report has %q", word)
		}
		header, _, _ := strings.Cut(string(text), "\r\n\r\n")
		if strings.Contains(strings.ToLower(header), word) {
			t.Errorf("the mail has %q", word)
		}
	}
}
