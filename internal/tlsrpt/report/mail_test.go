package report_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

const exampleID = "20261130.example.com.abcdefgh@company-x.example"

// message returns a mail of the example's report.
func message(t testing.TB, r *report.Reporter) (text, compressed []byte) {
	t.Helper()
	compressed, err := r.Build(example(), exampleID).Compress()
	if err != nil {
		t.Fatal(err)
	}
	text, err = r.Message(report.Mail{To: "tls@example.com", Day: "2026-11-30", Domain: "example.com", ID: exampleID, Compressed: compressed,
		Date: time.Date(2026, 12, 1, 1, 2, 3, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	return text, compressed
}

func TestRFC8460_5_3_TheMail(t *testing.T) {
	text, compressed := message(t, newReporter(t, nil))
	m, err := mail.ReadMessage(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"From": "<noreply@company-x.example>", "To": "<tls@example.com>", "Date": "Tue, 01 Dec 2026 01:02:03 +0000",
		"Subject":    "Report Domain: example.com Submitter: company-x.example Report-ID: <" + exampleID + ">",
		"Message-Id": "<" + exampleID + ">", "Mime-Version": "1.0",
		"Tls-Report-Domain": "example.com", "Tls-Report-Submitter": "company-x.example", "Tls-Required": "No", "Auto-Submitted": "auto-generated",
	} {
		if got := m.Header[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s is %q; want %q", name, got, want)
		}
	}
	media, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || media != "multipart/report" || params["report-type"] != "tlsrpt" {
		t.Fatalf("Content-Type %s, %q, %v", media, params, err)
	}
	parts := multipart.NewReader(m.Body, params["boundary"])
	first, err := parts.NextPart()
	if err != nil {
		t.Fatal(err)
	}
	if words, err := io.ReadAll(first); err != nil || first.Header.Get("Content-Type") != "text/plain; charset=us-ascii" || !strings.Contains(string(words), "2026-11-30") {
		t.Errorf("the first part: %q, %v, %q", first.Header, err, words)
	}
	second, err := parts.NextPart()
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, second)); err != nil || second.Header.Get("Content-Type") != "application/tlsrpt+gzip" ||
		second.FileName() != "company-x.example!example.com!1795996800!1796083199.json.gz" || !bytes.Equal(body, compressed) {
		t.Errorf("the second part: %q, %v, %d bytes; want %d", second.Header, err, len(body), len(compressed))
	}
	if _, err := parts.NextPart(); err != io.EOF {
		t.Errorf("after the second part: %v", err)
	}
	for line := range strings.SplitSeq(string(text), "\r\n") {
		if len(line) > 998 || strings.ContainsAny(line, "\r\n") || strings.ContainsFunc(line, func(r rune) bool { return r > '~' }) {
			t.Errorf("the line %q", line)
		}
	}
}

func TestTheLongestNamesFitIntoTheMail(t *testing.T) {
	long := strings.Repeat(strings.Repeat("a", 61)+".", 4) + "test" // 252 characters
	r := newReporter(t, func(c *report.Config) { c.Contact, c.Sender = "a@"+long, "" })
	text, err := r.Message(report.Mail{To: "tls@" + long[2:], Day: "2026-11-30", Domain: long, ID: r.NewID("2026-11-30", long), Compressed: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	m, err := mail.ReadMessage(bytes.NewReader(text))
	if err != nil || !regexp.MustCompile(`^Report Domain: `+long+` Submitter: `+long+` Report-ID: <20261130\.`+long+`\.[a-z0-9]{16}@`+long+`>$`).MatchString(m.Header.Get("Subject")) {
		t.Errorf("%v, %q", err, m.Header.Get("Subject"))
	}
	for line := range strings.SplitSeq(string(text), "\r\n") {
		if len(line) > 998 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}

func TestNothingCanBePutIntoTheHeaderOfTheMail(t *testing.T) {
	for _, m := range []report.Mail{
		{To: "tls@example.com", Domain: "example.com\r\nBcc: a@b.example"}, {To: "tls@example.com", Domain: ""}, {To: "tls@example.com, a@b.example", Domain: "example.com"},
	} {
		if text, err := newReporter(t, nil).Message(m); err == nil {
			t.Errorf("%+v: got %q", m, text)
		}
	}
}

// pemKey returns a private key in PKCS #8.
func pemKey(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestRFC8460_3_TheMailIsSignedByTheReportingDomain(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)})
	for name, text := range map[string][]byte{"rsa": pemKey(t, rsaKey), "rsa in PKCS #1": pkcs1, "ed25519": pemKey(t, edKey)} {
		t.Run(name, func(t *testing.T) {
			key, err := report.ParseKey(text)
			if err != nil {
				t.Fatal(err)
			}
			r := newReporter(t, func(c *report.Config) { c.Key, c.Selector = key, "tls2026" })
			signed, _ := message(t, r)
			if got := verify(t, signed, key); len(got) != 1 || got[0].Err != nil || got[0].Domain != "company-x.example" {
				t.Fatalf("got %+v", got)
			} else {
				for _, field := range []string{"From", "To", "Date", "Subject", "Message-ID", "MIME-Version", "Content-Type", "TLS-Report-Domain", "TLS-Report-Submitter"} {
					if !slices.Contains(got[0].HeaderKeys, field) {
						t.Errorf("%s is not signed", field)
					}
				}
			}
			if header, _, _ := strings.Cut(string(signed), "\r\n\r\n"); regexp.MustCompile(`;\s*l=`).MatchString(header) {
				t.Errorf("l= in %s", header)
			}
			for _, change := range [][2]string{
				{"TLS-Report-Domain: example.com", "TLS-Report-Domain: example.net"}, {"TLS-Report-Submitter: company-x", "TLS-Report-Submitter: company-y"},
				{"Subject: Report", "Subject: No report"}, {"From: <", "From: <x@evil.example>\r\nFrom: <"}, {"This is a report", "This is no report"}, {"--\r\n", "--\r\nmore\r\n"},
			} {
				forged := strings.Replace(string(signed), change[0], change[1], 1)
				if got := verify(t, []byte(forged), key); forged == string(signed) || len(got) != 1 || got[0].Err == nil {
					t.Errorf("%s: the signature holds: %+v", change[1], got)
				}
			}
		})
	}
}

// verify checks the signatures of a mail with the public half of key.
func verify(t testing.TB, text []byte, key crypto.Signer) []*dkim.Verification {
	t.Helper()
	verifications, err := dkim.VerifyWithOptions(bytes.NewReader(text), &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		if name != "tls2026._domainkey.company-x.example" {
			t.Errorf("the key is looked for at %s", name)
		}
		return []string{keyRecord(t, key)}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return verifications
}

// keyRecord returns the text of a DKIM key record.
func keyRecord(t testing.TB, key crypto.Signer) string {
	t.Helper()
	if public, ok := key.Public().(ed25519.PublicKey); ok {
		return "v=DKIM1; k=ed25519; s=email:tlsrpt; p=" + base64.StdEncoding.EncodeToString(public)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return "v=DKIM1; k=rsa; s=email:tlsrpt; p=" + base64.StdEncoding.EncodeToString(der)
}

func TestTheDKIMKeyRecordIsCompared(t *testing.T) {
	const record = "v=DKIM1; k=ed25519; p=hKIYFIiBMyXodAd5PxMtMLXccWtQSMMoDg7R0Z9N59Q="
	key, err := report.ParseKey([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHFEnUYxeqfUy56em7Ug1h+ZoN8EHVJeZ+atkr1ghvMe\n-----END PRIVATE KEY-----\n"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := report.New(report.Config{Organization: "Test", Contact: "tls@reporter.test", Key: key, Selector: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		want string // "": it fits
		txts []string
	}{
		{"", []string{record}},
		{"", []string{record + "; s=email"}},
		{"no valid key found", nil},
		{"multiple TXT records", []string{record, record}},
		{"signature did not verify", []string{strings.Replace(record, "p=hK", "p=hL", 1)}},
		{"key revoked", []string{"v=DKIM1; k=ed25519; p="}},
		{"inappropriate service", []string{record + "; s=tlsrpt"}},
	} {
		words, err := r.CheckKey(func(name string) ([]string, error) {
			if name != "s1._domainkey.reporter.test" {
				t.Errorf("asked for %q", name)
			}
			return tt.txts, nil
		})
		if (err == nil) != (words != "") || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v; want %q", tt.txts, err, tt.want)
		}
	}
}

func TestOtherKeysThanDKIMsAreRefused(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"ecdsa": pemKey(t, key), "no PEM": []byte("x"), "empty": nil,
		"a broken key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})} {
		if key, err := report.ParseKey(text); err == nil {
			t.Errorf("%s: got %T", name, key)
		}
	}
	if r, err := report.New(report.Config{Organization: "a", Contact: "a@b.example", Key: ed25519.PrivateKey{}, Selector: "a b"}); err == nil {
		t.Errorf("a selector with a space: %+v", r)
	}
}
