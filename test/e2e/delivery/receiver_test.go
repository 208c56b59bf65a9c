//go:build e2e

package delivery

import (
	"bytes"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

const (
	byPolicy = "receiver.test"      // an enforced policy, which the receiver breaks
	byDANE   = "dane-receiver.test" // the same with DANE

	mailbox      = "/var/mail/virtual/reports/new"
	receiverAddr = "198.19.0.1"
	schemaFile   = "../../../internal/tlsrpt/report/testdata/rfc8460.schema.json"
)

// A receiver is a Postfix for two domains. Its certificate is self-signed, and both
// domains demand another one: no MTA that enforces may deliver to it.
type receiver struct{ *stage.Postfix }

func startReceiver(t *testing.T, lab *testlab.T) *receiver {
	t.Helper()
	lab.Domain(byPolicy, testlab.With{NoMail: true})
	lab.Domain(byDANE, testlab.With{NoMail: true, NoPolicy: true, Signed: true})
	for _, domain := range []string{byPolicy, byDANE} {
		lab.Set("mx1." + domain + ". 300 IN A " + receiverAddr)
	}
	lab.Set("_25._tcp.mx1." + byDANE + ". 300 IN TLSA 3 1 1 " + strings.Repeat("00", 32))
	pair := pairFor(t, lab, testlab.CertSelfSigned, "mx1."+byPolicy, "mx1."+byDANE)
	r := &receiver{stage.StartPostfix(t, "postfix-trixie", map[string]string{"/etc/postfix/pair.pem": string(pair)},
		"inet_interfaces = 127.0.0.1", "myhostname = mx1."+byPolicy,
		"virtual_mailbox_domains = "+byPolicy+", "+byDANE, "virtual_mailbox_base = /var/mail/virtual", "virtual_mailbox_maps = static:reports/",
		"virtual_uid_maps = static:8", "virtual_gid_maps = static:8", "virtual_minimum_uid = 8",
		"smtpd_tls_chain_files = /etc/postfix/pair.pem", "smtpd_tls_security_level = may", "smtpd_tls_loglevel = 1")}
	if err := os.MkdirAll(r.Root().Path("/var/mail/virtual"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(r.Root().Path("/var/mail/virtual"), 8, 8); err != nil {
		t.Fatal(err)
	}
	// Not by inet_interfaces: an address of an interface would be Exim's own.
	if out, err := r.Root().Command("/usr/sbin/postconf", "-M", receiverAddr+":25/inet = "+receiverAddr+":25 inet n - y - - smtpd").CombinedOutput(); err != nil {
		t.Fatalf("postconf -M: %v: %s", err, out)
	}
	r.Unset(t, "master_service_disable")
	r.Configure(t, "master_service_disable = smtp/inet\n")
	return r
}

// pairFor returns a certificate with its key.
func pairFor(t *testing.T, lab *testlab.T, kind testlab.CertKind, names ...string) []byte {
	t.Helper()
	cert, err := lab.Issue(kind, names...)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	pair := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	return append(pair, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})...)
}

// mails returns the mails in the mailbox.
func (r *receiver) mails(t *testing.T) (mails []string) {
	t.Helper()
	files, err := filepath.Glob(r.Root().Path(mailbox) + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		mails = append(mails, string(text))
	}
	return mails
}

//go:embed read.py
var reader string

// A reading is what read.py prints.
type reading struct {
	Defects, Schema    []string
	Signed             bool
	Signer, Type, Part string
	File               string
	Headers            map[string]string
	Report             report.Report
}

// read reads a mail with Debian's Python.
func read(t *testing.T, mail string) (r reading) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", reader, schemaFile)
	var stderr bytes.Buffer
	c.Stdin, c.Stderr = strings.NewReader(mail), &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, stderr.String(), mail)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	return r
}
