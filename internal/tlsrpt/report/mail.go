package report

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/emersion/go-message"
	"github.com/emersion/go-msgauth/dkim"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// MediaType is that of a compressed report, by mail and by HTTPS (RFC 8460, 6.4).
const MediaType = "application/tlsrpt+gzip"

// FileName is the name of a report's file (RFC 8460, 5.1).
func (r *Reporter) FileName(day tlsrpt.Day, domain string) string {
	return fmt.Sprintf("%s!%s!%d!%d.json.gz", r.submitter, domain, day.Begin().Unix(), day.End().Unix()-1)
}

// A Mail is what a report's mail is about.
type Mail struct {
	To         string // a bare address
	Day        tlsrpt.Day
	Domain     string // the policy domain
	ID         string // report id
	Compressed []byte // see Report.Compress
	Date       time.Time
}

// signed lists the header fields that the DKIM signature covers; a second From would
// break it (RFC 6376, 8.15).
var signed = []string{"From", "From", "To", "Date", "Subject", "Message-ID", "MIME-Version", "Content-Type",
	"TLS-Report-Domain", "TLS-Report-Submitter", "TLS-Required", "Auto-Submitted"}

// Message returns the mail of a report (RFC 8460, 5.3), with CRLF at line ends, and
// signed if there is a key.
func (r *Reporter) Message(m Mail) ([]byte, error) {
	if _, err := ParseAddress(m.To); err != nil || !publicName(m.Domain) {
		return nil, fmt.Errorf("no report for %s to %s: a bare address and a domain are needed", quote(m.Domain), quote(m.To))
	}
	var h message.Header
	for _, field := range [][2]string{ // the last one comes first
		{"Content-Type", "multipart/report; report-type=tlsrpt"},
		{"Auto-Submitted", "auto-generated"}, // RFC 3834: no vacation answers
		{"TLS-Required", "No"},               // RFC 8689: RFC 8460, 3 wants it delivered where TLS fails
		{"TLS-Report-Submitter", r.submitter},
		{"TLS-Report-Domain", m.Domain},
		{"MIME-Version", "1.0"},
		{"Message-ID", "<" + m.ID + ">"}, // the same in retries: the receiver can drop a repeated one
		{"Date", m.Date.Format(time.RFC1123Z)},
		{"Subject", fmt.Sprintf("Report Domain: %s\r\n Submitter: %s\r\n Report-ID: <%s>", m.Domain, r.submitter, m.ID)},
		{"To", "<" + m.To + ">"},
		{"From", "<" + r.config.Sender + ">"},
	} {
		h.AddRaw([]byte(field[0] + ": " + field[1] + "\r\n")) // Set would write Tls-Report-Domain
	}
	var b bytes.Buffer
	w, err := message.CreateWriter(&b, h)
	if err == nil {
		err = errors.Join(r.addText(w, m), r.addReport(w, m), w.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("the mail of report %s: %w", quote(m.ID), err)
	}
	if r.config.Key == nil {
		return b.Bytes(), nil
	}
	var out bytes.Buffer
	err = dkim.Sign(&out, &b, &dkim.SignOptions{
		Domain: r.submitter, Selector: r.config.Selector, Signer: r.config.Key, HeaderKeys: signed,
		HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed,
	})
	if err != nil {
		return nil, fmt.Errorf("signing report %s: %w", quote(m.ID), err)
	}
	return out.Bytes(), nil
}

// addText adds the part for people.
func (r *Reporter) addText(w *message.Writer, m Mail) error {
	return addPart(w, map[string]string{"Content-Type": "text/plain; charset=us-ascii"}, []byte(strings.Join([]string{
		"This is a report about the TLS sessions of mail to " + m.Domain,
		"on " + string(m.Day) + " (UTC), as RFC 8460 describes it. It was asked for by the",
		"TXT record at " + RecordName(m.Domain) + ".",
		"",
		"The report is attached: JSON, compressed with gzip.",
		"Questions: " + r.config.Contact,
		"",
	}, "\r\n")))
}

func (r *Reporter) addReport(w *message.Writer, m Mail) error {
	name := r.FileName(m.Day, m.Domain)
	return addPart(w, map[string]string{
		"Content-Type":              MediaType,
		"Content-Transfer-Encoding": "base64",
		"Content-Disposition":       `attachment; filename="` + name + `"`,
	}, m.Compressed)
}

func addPart(w *message.Writer, fields map[string]string, body []byte) error {
	var h message.Header
	for name, value := range fields {
		h.Set(name, value)
	}
	part, err := w.CreatePart(h)
	if err != nil {
		return err
	}
	_, err = part.Write(body)
	return errors.Join(err, part.Close())
}

// CheckKey signs a mail, and verifies it by the DKIM key record (RFC 6376, 3.6.2), which lookup
// asks for. It says that they fit.
func (r *Reporter) CheckKey(lookup func(name string) ([]string, error)) (words string, err error) {
	if r.config.Key == nil {
		return "the MTA has to sign the mail from " + r.config.Sender + ": dkim_key is not set", nil
	}
	mail, err := r.Message(Mail{To: r.config.Contact, Day: "2026-11-30", Domain: r.submitter, ID: "check@" + r.submitter})
	if err != nil {
		return "", err
	}
	results, err := dkim.VerifyWithOptions(bytes.NewReader(mail), &dkim.VerifyOptions{LookupTXT: lookup})
	for _, result := range results {
		err = errors.Join(err, result.Err)
	}
	record := "the DKIM key record at " + r.config.Selector + "._domainkey." + r.submitter
	if err != nil {
		return "", fmt.Errorf("%s: %w", record, err)
	}
	return record + " fits dkim_key", nil
}

// ParseKey reads a private key for DKIM in PEM form: RSA of 1024 bits or more (RFC
// 8301), or Ed25519 (RFC 8463).
func ParseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no key in PEM form")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("no private key: %w", err)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("a key of type %T, which DKIM does not know: take rsa or ed25519", key)
}
