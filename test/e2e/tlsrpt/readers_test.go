//go:build e2e

// Package tlsrpt tests TLS reports with real programs: Postfix tells of its sessions, and
// readers that are not ours (Python, python3-dkim) read the mail of a report.
package tlsrpt

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

// reader prints what it understands of the mail on its standard input. Its argument is
// the key's TXT record.
const reader = `
import dkim, email, email.policy, gzip, json, sys
raw = sys.stdin.buffer.read()
m = email.message_from_bytes(raw, policy=email.policy.default)
text, report = m.iter_parts()
asked = []
def txt(name, timeout=5):
    asked.append(name.decode())
    return sys.argv[1].encode()
signature = dkim.DKIM(raw)
signed = signature.verify(dnsfunc=txt)
forged = dkim.verify(raw.replace(b"TLS-Report-Domain: example.com", b"TLS-Report-Domain: example.net"), dnsfunc=txt)
print(json.dumps({
    "defects": len(m.defects) + len(text.defects) + len(report.defects),
    "type": m.get_content_type(), "report-type": m["Content-Type"].params["report-type"],
    "subject": m["Subject"], "from": m["From"].addresses[0].addr_spec, "to": m["To"].addresses[0].addr_spec,
    "date": m["Date"].datetime.isoformat(), "domain": m["TLS-Report-Domain"], "submitter": m["TLS-Report-Submitter"],
    "text": text.get_content_type(), "part": report.get_content_type(), "file": report.get_filename(),
    "report": json.loads(gzip.decompress(report.get_content())),
    "signed": signed, "forged": forged, "asked": asked[0],
    "headers": sorted(h.decode().lower() for h in signature.include_headers),
}))
`

func TestTheMailIsReadByPythonAndItsSignatureVerified(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaPublic, err := x509.MarshalPKIXPublicKey(rsaKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	edPublic, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for kind, key := range map[string]struct {
		signer crypto.Signer
		public []byte
	}{"rsa": {rsaKey, rsaPublic}, "ed25519": {edKey, edPublic}} {
		t.Run(kind, func(t *testing.T) {
			r, err := report.New(report.Config{Organization: "Company-X & Söhne", Contact: "tls@company-x.example", Key: key.signer, Selector: "tls2026"})
			if err != nil {
				t.Fatal(err)
			}
			id := r.NewID("2026-11-30", "example.com")
			built := r.Build(day, id)
			compressed, err := built.Compress()
			if err != nil {
				t.Fatal(err)
			}
			mail, err := r.Message(report.Mail{To: "reports@example.com", Day: day.Day, Domain: day.Domain, ID: id, Compressed: compressed,
				Date: time.Date(2026, 12, 1, 1, 2, 3, 0, time.UTC)})
			if err != nil {
				t.Fatal(err)
			}
			// Without s=: python3-dkim 1.1.4 takes s=email:tlsrpt for one unknown service.
			record := "v=DKIM1; k=" + kind + "; p=" + base64.StdEncoding.EncodeToString(key.public)
			got := read(t, mail, record)
			text, err := json.Marshal(built)
			if err != nil {
				t.Fatal(err)
			}
			var wantReport map[string]any
			if err := json.Unmarshal(text, &wantReport); err != nil {
				t.Fatal(err)
			}
			want := map[string]any{
				"defects": 0.0, "type": "multipart/report", "report-type": "tlsrpt",
				"subject": "Report Domain: example.com Submitter: company-x.example Report-ID: <" + id + ">",
				"from":    "tls@company-x.example", "to": "reports@example.com", "date": "2026-12-01T01:02:03+00:00",
				"domain": "example.com", "submitter": "company-x.example", "text": "text/plain", "part": "application/tlsrpt+gzip",
				"file": "company-x.example!example.com!1795996800!1796083199.json.gz", "report": wantReport,
				"signed": true, "forged": false, "asked": "tls2026._domainkey.company-x.example.",
				"headers": []any{"auto-submitted", "content-type", "date", "from", "from", "message-id", "mime-version", "subject",
					"tls-report-domain", "tls-report-submitter", "tls-required", "to"},
			}
			for name := range want {
				if !reflect.DeepEqual(got[name], want[name]) {
					t.Errorf("%s is %v; want %v", name, got[name], want[name])
				}
			}
		})
	}
}

// day is the day of the report.
var day = tlsrpt.DomainDay{Domain: "example.com", Day: "2026-11-30", Policies: []tlsrpt.Summary{{
	Policy: tlsrpt.Policy{Type: tlsrpt.TypeSTS, Domain: "example.com", Strings: []string{"version: STSv1", "mode: testing"}, MXHosts: []string{"*.example.com"}},
	Failed: 2, Successful: 5326,
	Details: []tlsrpt.Detail{{Sessions: 2, Failure: tlsrpt.Failure{Result: tlsrpt.CertificateExpired, MXHost: "mx.example.com",
		SendingIP: netip.MustParseAddr("2001:db8::1"), ReceivingIP: netip.MustParseAddr("192.0.2.1")}}},
}}}

// read runs the reader with Debian's Python, which has the module.
func read(t *testing.T, mail []byte, record string) map[string]any {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", reader, record)
	var stderr strings.Builder
	cmd.Stdin, cmd.Stderr = bytes.NewReader(mail), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var got map[string]any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	return got
}
