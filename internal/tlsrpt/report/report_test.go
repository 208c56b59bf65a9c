package report_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// example is a day with a policy of each type, and every kind of failure.
func example() tlsrpt.DomainDay {
	sts := tlsrpt.Summary{
		Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: "example.com",
			Strings: []string{"version: STSv1", "mode: enforce", "mx: *.mail.example.com", "max_age: 86400"}, MXHosts: []string{"*.mail.example.com"}},
		Successful: 5326, Failed: 303,
	}
	for i, result := range tlsrpt.ResultTypes {
		sts.Details = append(sts.Details, tlsrpt.Detail{Sessions: uint64(i + 1), Failure: tlsrpt.Failure{Result: result,
			SendingIP: netip.MustParseAddr("2001:db8:0:0:1:0:0:ABCD"), ReceivingIP: tlsrpt.Address("::ffff:203.0.113.58"),
			MXHost: "mx1.mail.example.com", HELO: "mx1.mail.example.com", Reason: `a "reason" <\>`}})
	}
	sts.Details = append(sts.Details, tlsrpt.Detail{Sessions: 9, Failure: tlsrpt.Failure{Result: tlsrpt.STSPolicyFetchError}})
	return tlsrpt.DomainDay{Domain: "example.com", Day: "2026-11-30", Policies: []tlsrpt.Summary{
		sts,
		{Policy: tlsrpt.Policy{Type: tlsrpt.TypeTLSA, Domain: "mx2.example.com", Strings: []string{"3 1 1 0D6FCE3A"}}, Successful: 1},
		{Policy: tlsrpt.Policy{Type: tlsrpt.TypeNone, Domain: "example.com"}, Failed: 1},
	}}
}

func newReporter(t testing.TB, change func(*report.Config)) *report.Reporter {
	t.Helper()
	config := report.Config{Organization: "Company-X & Söhne", Contact: "sts-reporting@company-x.example", Sender: "noreply@COMPANY-X.example"}
	if change != nil {
		change(&config)
	}
	r, err := report.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func unzip(t testing.TB, compressed []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// built returns the JSON of a day's report.
func built(t testing.TB, day tlsrpt.DomainDay, id string) []byte {
	t.Helper()
	compressed, err := newReporter(t, nil).Build(day, id).Compress()
	if err != nil {
		t.Fatal(err)
	}
	return unzip(t, compressed)
}

// checkSchema validates a report against the schema of RFC 8460, 4.4 in testdata.
func checkSchema(t testing.TB, text []byte) {
	t.Helper()
	file, err := os.ReadFile(filepath.Join("testdata", "rfc8460.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("rfc8460.schema.json", schema); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("rfc8460.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := compiled.Validate(value); err != nil {
		t.Errorf("%#v\n%s", err, text)
	}
}

func TestRFC8460_4_4_TheReportFollowsTheSchema(t *testing.T) {
	checkSchema(t, built(t, example(), "20261130.example.com.abc@company-x.example"))
	checkSchema(t, built(t, tlsrpt.DomainDay{Domain: "empty.example", Day: "2026-11-30"}, "1@company-x.example"))
	// The schema is worth something only if it refuses what is wrong.
	good := string(built(t, example(), "1@company-x.example"))
	for _, change := range [][2]string{
		{`"tlsa"`, `"TLSA"`}, {`"mx-host":["*.mail.example.com"]`, `"mx-host":"*.mail.example.com"`}, {`"failure-details":[]`, `"failure-details":null`},
		{`"failed-session-count":9`, `"failed-session-count":"9"`}, {`"203.0.113.58"`, `"::ffff:203.0.113.58"`}, {`"203.0.113.58"`, `""`},
		{`2001:db8::1:0:0:abcd`, `2001:DB8::1:0:0:abcd`}, {`"2026-11-30T23:59:59Z"`, `"2026-11-30T23:59:59"`}, {`"report-id":"1@company-x.example",`, ``},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		probe := &probe{TB: t}
		if checkSchema(probe, []byte(bad)); bad == good || !probe.failed {
			t.Errorf("the schema accepts %s", change[1])
		}
	}
}

// A probe is a test whose failure is expected.
type probe struct {
	testing.TB
	failed bool
}

func (p *probe) Errorf(string, ...any) { p.failed = true }

func TestRFC8460_4_4_FieldsWithoutAValueAreLeftOutAndArraysAreThere(t *testing.T) {
	text := string(built(t, example(), "1@company-x.example"))
	for _, part := range []string{
		`{"organization-name":"Company-X \u0026 Söhne","date-range":{"start-datetime":"2026-11-30T00:00:00Z","end-datetime":"2026-11-30T23:59:59Z"},` +
			`"contact-info":"sts-reporting@company-x.example","report-id":"1@company-x.example","policies":[{"policy":{"policy-type":"sts",`,
		`"mx-host":["*.mail.example.com"]},"summary":{"total-successful-session-count":5326,"total-failure-session-count":303},`,
		`{"result-type":"starttls-not-supported","sending-mta-ip":"2001:db8::1:0:0:abcd","receiving-mx-hostname":"mx1.mail.example.com",` +
			`"receiving-mx-helo":"mx1.mail.example.com","receiving-ip":"203.0.113.58","failure-reason-code":"a \"reason\" \u003c\\\u003e","failed-session-count":1}`,
		`{"result-type":"sts-policy-fetch-error","failed-session-count":9}`,
		`{"policy":{"policy-type":"tlsa","policy-string":["3 1 1 0D6FCE3A"],"policy-domain":"mx2.example.com"},` +
			`"summary":{"total-successful-session-count":1,"total-failure-session-count":0},"failure-details":[]}`,
		`{"policy":{"policy-type":"no-policy-found","policy-string":[],"policy-domain":"example.com"},`,
	} {
		if !strings.Contains(text, part) {
			t.Errorf("%s\nis not in\n%s", part, text)
		}
	}
	if strings.Contains(text, "null") || strings.Contains(text, `:""`) {
		t.Errorf("an empty value: %s", text)
	}
}

func TestRFC8460_5_1_FileName(t *testing.T) {
	if got, want := newReporter(t, nil).FileName("2026-11-30", "example.com"), "company-x.example!example.com!1795996800!1796083199.json.gz"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
}

func TestEachReportHasAnIDOfItsOwn(t *testing.T) {
	r := newReporter(t, nil)
	a, b := r.NewID("2026-11-30", "example.com"), r.NewID("2026-11-30", "example.com")
	if form := regexp.MustCompile(`^20261130\.example\.com\.[a-z0-9]{16}@company-x\.example$`); a == b || !form.MatchString(a) {
		t.Errorf("got %s and %s", a, b)
	}
}

func TestRFC8460_5_3_AReporterMustBeOneDomain(t *testing.T) {
	for name, change := range map[string]func(*report.Config){
		"no organization":         func(c *report.Config) { c.Organization = "" },
		"a line end":              func(c *report.Config) { c.Organization = "a\nb" },
		"a long name":             func(c *report.Config) { c.Organization = strings.Repeat("a", 257) },
		"no contact":              func(c *report.Config) { c.Contact = "" },
		"a contact with a name":   func(c *report.Config) { c.Contact = "TLS <tls@company-x.example>" },
		"another sender's domain": func(c *report.Config) { c.Sender = "tls@mail.company-x.example" },
	} {
		config := report.Config{Organization: "Company-X", Contact: "tls@company-x.example"}
		change(&config)
		if r, err := report.New(config); err == nil {
			t.Errorf("%s: got %+v", name, r)
		}
	}
	r, err := report.New(report.Config{Organization: "Company-X", Contact: "tls@company-x.example"})
	if err != nil || r.Sender() != "tls@company-x.example" || !strings.HasSuffix(r.NewID("2026-11-30", "a.test"), "@company-x.example") {
		t.Errorf("without a sender: %+v, %v", r, err)
	}
}

// A policy's text is hostile: random bytes do not compress.
func TestRFC8460_5_2_AReportThatIsTooLargeIsRefused(t *testing.T) {
	day := tlsrpt.DomainDay{Domain: "example.com", Day: "2026-11-30"}
	random := rand.NewChaCha8([32]byte{})
	for range 9 {
		s := tlsrpt.Summary{Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: "example.com"}}
		for range tlsrpt.MaxPolicyStrings {
			b := make([]byte, tlsrpt.MaxText/2)
			random.Read(b)
			s.Policy.Strings = append(s.Policy.Strings, fmt.Sprintf("%x", b))
		}
		day.Policies = append(day.Policies, s)
	}
	if b, err := newReporter(t, nil).Build(day, "1@company-x.example").Compress(); !errors.Is(err, report.ErrTooLarge) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestTheLargestHonestDayIsReported(t *testing.T) {
	day := tlsrpt.DomainDay{Domain: "example.com", Day: "2026-11-30"}
	for i := range 64 { // as many as the store keeps
		s := tlsrpt.Summary{Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: "example.com"}, Failed: 1 << 40}
		for j := range 100 {
			s.Policy.MXHosts = append(s.Policy.MXHosts, fmt.Sprintf("mx%d-%d.mail.example.com", i, j))
			s.Policy.Strings = append(s.Policy.Strings, fmt.Sprintf("mx: mx%d-%d.mail.example.com", i, j))
			s.Details = append(s.Details, tlsrpt.Detail{Sessions: rand.Uint64N(1 << 40), Failure: tlsrpt.Failure{Result: tlsrpt.CertificateNotTrusted,
				SendingIP: netip.AddrFrom4([4]byte{203, 0, 113, byte(rand.N(256))}), ReceivingIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(rand.N(256))}),
				MXHost: s.Policy.MXHosts[j], HELO: s.Policy.MXHosts[j], Reason: "unable_to_get_local_issuer_certificate"}})
		}
		day.Policies = append(day.Policies, s)
	}
	compressed, err := newReporter(t, nil).Build(day, "1@company-x.example").Compress()
	if err != nil || len(compressed) > report.MaxReport/2 {
		t.Errorf("%d bytes, %v", len(compressed), err)
	}
}

func BenchmarkReport(b *testing.B) {
	r := newReporter(b, nil)
	day := example()
	for b.Loop() {
		compressed, err := r.Build(day, "1@company-x.example").Compress()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := r.Message(report.Mail{To: "tls@example.com", Day: day.Day, Domain: day.Domain, ID: "1@company-x.example", Compressed: compressed}); err != nil {
			b.Fatal(err)
		}
	}
}
