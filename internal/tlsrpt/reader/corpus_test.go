package reader_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"mime/quotedprintable"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reader"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// What one sender's report on example.com says, in the form that the sender gives it.
type sample struct {
	name, json, mail string
	day              tlsrpt.Day
	failed, sessions uint64
	row              string // of the table of failures; "" if there are none
}

func compress(t testing.TB, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// base64Lines encodes as a mail does.
func base64Lines(text string) string {
	code := base64.StdEncoding.EncodeToString([]byte(text))
	var b strings.Builder
	for len(code) > 76 {
		b.WriteString(code[:76] + "\r\n")
		code = code[76:]
	}
	return b.String() + code + "\r\n"
}

func quotedPrintable(t testing.TB, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := quotedprintable.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String() + "\r\n"
}

// mail returns a message of a text and an attachment.
func mail(media, header, body string) string {
	return strings.ReplaceAll("Received: by mx.example.com; Mon, 30 Nov 2026 08:00:00 +0000\nMIME-Version: 1.0\nFrom: <noreply@sender.test>\nSubject: Report\n"+
		"TLS-Report-Domain: example.com\nTLS-Report-Submitter: sender.test\nContent-Type: "+media+"\n\n"+
		"--0000b\nContent-Type: text/plain; charset=\"UTF-8\"; format=flowed; delsp=yes\n\nThis is an aggregate TLS report\n\n--0000b\n"+header+"\n\n",
		"\n", "\r\n") + body + "\r\n--0000b--\r\n"
}

const multipartReport = `multipart/report; boundary="0000b"; report-type=tlsrpt`

// The forms are those of reports that were published; the contents are our own.
const (
	googleJSON = `{"organization-name":"Google Inc.","date-range":{"start-datetime":"2026-11-29T00:00:00Z","end-datetime":"2026-11-29T23:59:59Z"},
		"contact-info":"smtp-tls-reporting@google.com","report-id":"2026-11-29T00:00:00Z_example.com","policies":[{"policy":{"policy-type":"sts",
		"policy-string":["version: STSv1","mode: testing","mx: mx1.example.com ","max_age: 86400"],"policy-domain":"example.com","mx-host":["mx1.example.com"]},
		"summary":{"total-successful-session-count":7,"total-failure-session-count":2},"failure-details":[{"result-type":"certificate-host-mismatch",
		"sending-mta-ip":"209.85.128.70","receiving-ip":"192.0.2.1","receiving-mx-hostname":"mx1.example.com","failed-session-count":2}]}]}`
	microsoftJSON = `{"organization-name":"Microsoft Corporation","date-range":{"start-datetime":"2026-11-28T00:00:00","end-datetime":"2026-11-28T23:59:59"},
		"contact-info":"tlsrpt-noreply@microsoft.com","report-id":"134088948849565294+example.com","policies":[{"policy":{"policy-type":"sts",
		"policy-domain":"example.com"},"summary":{"total-successful-session-count":0,"total-failure-session-count":3},
		"failure-details":[{"result-type":"sts-policy-fetch-error","failed-session-count":3}]}]}`
	mailRuJSON = `{"organization-name":"Mail.ru","date-range":{"start-datetime":"2026-11-29T00:00:00Z","end-datetime":"2026-11-30T00:00:00Z"},
		"contact-info":null,"report-id":"1795910400_5665667737528564296","policies":[{"policy":{"policy-type":"sts","policy-string":["version: STSv1",
		"mode: enforce","max_age: 86400","mx: *.example.com"],"policy-domain":"Example.com.","mx-host":"*.example.com"},
		"summary":{"total-successful-session-count":5,"total-failure-session-count":0},"failure-details":[]}]}`
	yahooJSON = "\ufeff" + ` {"organization-name":"Yahoo","date-range":{"start-datetime":"2026-11-29T00:00:00+00:00","end-datetime":"2026-11-29T23:59:59+00:00"},
		"contact-info":"tls@yahoo.test","report-id":"20261129.example.com","policies":[{"policy":{"policy-type":"STS","policy-string":"version: STSv1",
		"policy-domain":"example.com","mx-host-pattern":"*.example.com"},"summary":{"total-successful-session-count":"12","total-failure-session-count":"1"},
		"failure-details":{"result-type":"CERTIFICATE-EXPIRED","sending-mta-ip":"","receiving-ip":"192.0.2.2","failed-session-count":"1",
		"additional-information":null,"failure-reason-code":"expired 2026-11-01"},"more":{"x":[1]}}]}`
	reporterJSON = `{"organization-name":"sonne.test","date-range":{"start-datetime":"2026-11-29T00:00:00Z","end-datetime":"2026-11-29T23:59:59Z"},
		"contact-info":"tls@sonne.test","policies":[{"summary":{"total-failure-session-count":0,"total-successful-session-count":1},
		"policy":{"policy-type":"no-policy-found"},"failure-details":[]}],"report-id":"2026-11-29T00:00:00Z_idx1_example.com"}`
)

// corpus returns a report of each sender, our own the last.
func corpus(t testing.TB) []sample {
	t.Helper()
	gzipped := func(text string) string { return base64Lines(compress(t, text)) }
	ours, mail7 := ourMail(t)
	return []sample{
		{"google", googleJSON, mail(multipartReport, `Content-Type: application/tlsrpt+gzip; `+"\n\t"+`name="google.com!example.com!1795910400!1795996799!001.json.gz"`+"\n"+
			`Content-Disposition: attachment; filename="google.com!example.com!1795910400!1795996799!001.json.gz"`+"\nContent-Transfer-Encoding: base64", gzipped(googleJSON)),
			"2026-11-29", 2, 9, "2 example.com sts certificate-host-mismatch mx1.example.com Google Inc. 2026-11-29 -"},
		{"microsoft", microsoftJSON, mail(`multipart/report; report-type="tlsrpt"; boundary=0000b`, `Content-Transfer-Encoding: base64`+"\n"+
			`Content-Disposition: attachment; filename="microsoft.com!example.com!1795824000!1795910399!134088948849565294.json.gz"`+"\nContent-Type: application/tlsrpt+gzip", gzipped(microsoftJSON)),
			"2026-11-28", 3, 3, "3 example.com sts sts-policy-fetch-error - Microsoft Corporation 2026-11-28 -"},
		{"mail.ru", mailRuJSON, mail(multipartReport, "Content-Type: application/tlsrpt+json; charset=utf-8\nContent-Transfer-Encoding: quoted-printable", quotedPrintable(t, mailRuJSON)),
			"2026-11-29", 0, 5, ""},
		{"yahoo", yahooJSON, mail(`multipart/mixed; boundary=0000b`, `Content-Type: application/octet-stream; name=report`+"\nContent-Transfer-Encoding: BASE64", gzipped(yahooJSON)),
			"2026-11-29", 1, 13, "1 example.com STS certificate-expired 192.0.2.2 Yahoo 2026-11-29 expired 2026-11-01"},
		{"tlsrpt-reporter", reporterJSON, mail(multipartReport, "Content-Type: application/tlsrpt+json\nContent-Transfer-Encoding: 7bit\nContent-Disposition: attachment; filename=report.json", reporterJSON),
			"2026-11-29", 0, 1, ""},
		{"ours", ours, mail7, "2026-11-29", 4, 40, "4 mx.example.com tlsa validation-failure mx.example.com Example Ltd 2026-11-29 dane-no-match"},
	}
}

// ourMail returns a report of package report as JSON, and its mail.
func ourMail(t testing.TB) (text, mail string) {
	t.Helper()
	r, err := report.New(report.Config{Organization: "Example Ltd", Contact: "tls@reporter.test", Sender: "noreply@reporter.test"})
	if err != nil {
		t.Fatal(err)
	}
	const id = "20261129.example.com.abcdefgh@reporter.test"
	built := r.Build(tlsrpt.DomainDay{Domain: "example.com", Day: "2026-11-29", Policies: []tlsrpt.Summary{
		{Policy: tlsrpt.Policy{Type: tlsrpt.TypeTLSA, Domain: "mx.example.com", Strings: []string{"3 1 1 ABCD"}}, Successful: 6, Failed: 4, Details: []tlsrpt.Detail{
			{Failure: tlsrpt.Failure{Result: tlsrpt.ValidationFailure, MXHost: "mx.example.com", HELO: "mx", Reason: "dane-no-match"}, Sessions: 4}}},
		{Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: "example.com", Strings: []string{"version: STSv1"}, MXHosts: []string{"*.example.com"}}, Successful: 30},
	}}, id)
	compressed, err := built.Compress()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := json.Marshal(built)
	if err != nil {
		t.Fatal(err)
	}
	sent, err := r.Message(report.Mail{To: "tls@example.com", Day: "2026-11-29", Domain: "example.com", ID: id, Compressed: compressed, Date: time.Date(2026, 11, 30, 1, 2, 3, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	return string(plain), string(sent)
}

// A reading is what a Reader found.
type reading struct {
	reader.Reader
	reports  []*reader.Report
	places   []string
	problems []string
	totals   reader.Totals
}

func newReading() *reading {
	r := &reading{}
	r.Report = func(place string, report *reader.Report) {
		r.reports, r.places = append(r.reports, report), append(r.places, place)
		r.totals.Add(report)
	}
	r.Problem = func(place string, err error) { r.problems = append(r.problems, place+": "+err.Error()) }
	return r
}

// read reads a file with that text.
func read(text string) *reading {
	r := newReading()
	r.Stream("f", strings.NewReader(text))
	return r
}

// text returns the tables, with one blank between columns.
func (r *reading) text(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	if err := r.totals.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.SplitSeq(b.String(), "\n") {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}
