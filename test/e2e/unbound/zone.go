package unbound

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// A Zone is a zone file with its key if it is signed.
type Zone struct {
	Name string

	file   string
	anchor string // file of the key; empty: unsigned
}

const head = `$TTL 300
@ IN SOA ns h 1 3600 600 86400 300
@ IN NS ns
ns IN A 192.0.2.53
`

// WriteZone writes a zone file in dir. The records are in zone-file form with
// relative names; SOA and NS are added.
func WriteZone(t *testing.T, dir, name, records string) *Zone {
	t.Helper()
	z := &Zone{Name: name, file: filepath.Join(dir, name+".zone")}
	z.write(t, "$ORIGIN "+dns.Fqdn(name)+"\n"+head+records)
	return z
}

// Sign creates a key and signs the zone. The options are those of
// ldns-signzone.
func (z *Zone) Sign(t *testing.T, options ...string) {
	t.Helper()
	dir := filepath.Dir(z.file)
	key := strings.TrimSpace(run(t, dir, "ldns-keygen", "-k", "-a", "ECDSAP256SHA256", z.Name))
	signed := z.file + ".signed"
	run(t, dir, "ldns-signzone", append(options, "-o", z.Name, "-f", signed, z.file, key)...)
	z.file, z.anchor = signed, filepath.Join(dir, key+".key")
}

// Tamper replaces texts in a signed zone without signing it again. Each pair of
// texts must change one line.
func (z *Zone) Tamper(t *testing.T, oldnew ...string) {
	t.Helper()
	before := z.read(t)
	after := strings.NewReplacer(oldnew...).Replace(before)
	if n, want := differing(before, after), len(oldnew)/2; n != want {
		t.Fatalf("%d records of %s changed, want %d", n, z.Name, want)
	}
	z.write(t, after)
}

// differing counts the lines that differ.
func differing(a, b string) (n int) {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range x {
		if x[i] != y[i] {
			n++
		}
	}
	return n
}

// Unsign removes the signature of one name and type ("MX"): a validating
// resolver answers SERVFAIL, another one the records.
func (z *Zone) Unsign(t *testing.T, name, rtype string) {
	t.Helper()
	var kept []string
	taken := 0
	lines := bufio.NewScanner(strings.NewReader(z.read(t)))
	for lines.Scan() {
		rr, err := dns.NewRR(lines.Text())
		sig, ok := rr.(*dns.RRSIG)
		if err == nil && ok && sig.TypeCovered == dns.StringToType[rtype] && sig.Hdr.Name == dns.CanonicalName(name) {
			taken++
			continue
		}
		kept = append(kept, lines.Text())
	}
	if taken != 1 {
		t.Fatalf("%s has %d signatures of %s %s, want 1", z.Name, taken, name, rtype)
	}
	z.write(t, strings.Join(kept, "\n")+"\n")
}

func (z *Zone) read(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(z.file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (z *Zone) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(z.file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s (Debian package ldnsutils): %v", name, err)
	}
	return string(out)
}
