package policy_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

func TestRFC8461_10_3_WhichAddressesAreSpecial(t *testing.T) {
	for addr, want := range map[string]string{ // a part of the words; empty: an ordinary address
		"0.0.0.0": "this network", "0.255.255.255": "this network", "10.0.0.1": "private", "100.64.0.0": "carrier",
		"100.127.255.255": "carrier", "127.0.0.1": "loopback", "127.255.255.255": "loopback", "169.254.169.254": "link-local",
		"172.16.0.0": "private", "172.31.255.255": "private", "192.0.0.8": "IETF", "192.0.2.1": "documentation",
		"192.88.99.1": "6to4", "192.168.1.1": "private", "198.18.0.1": "benchmarks", "198.19.255.255": "benchmarks",
		"198.51.100.1": "documentation", "203.0.113.1": "documentation", "224.0.0.1": "multicast", "239.1.1.1": "multicast",
		"240.0.0.1": "reserved", "255.255.255.255": "reserved",

		"1.1.1.1": "", "9.255.255.255": "", "11.0.0.0": "", "100.63.255.255": "", "100.128.0.0": "", "126.255.255.255": "",
		"128.0.0.0": "", "169.253.255.255": "", "172.15.255.255": "", "172.32.0.0": "", "192.0.1.0": "", "192.167.255.255": "",
		"192.169.0.0": "", "198.17.255.255": "", "198.20.0.0": "", "223.255.255.255": "",

		"::": "unspecified", "::1": "loopback", "::2": "outside", "::127.0.0.1": "outside", "fc00::1": "private",
		"fdff::1": "private", "fe80::1": "link-local", "fe80::1%eth0": "link-local", "febf::1": "link-local", "fec0::1": "outside",
		"ff02::1": "multicast", "2001:db8::1": "documentation", "3fff::1": "documentation", "3fff:fff::1": "documentation",
		"2001::1": "Teredo", "2001:2::1": "benchmarks", "2001:1ff::": "IETF", "100::1": "outside", "5f00::1": "outside",
		"64:ff9b:1::a00:1": "outside", "4000::1": "outside", "fe00::1": "outside", "100:0:0:1::1": "outside", "1::1": "outside",

		"::ffff:127.0.0.1": "loopback", "::ffff:10.0.0.1": "private", "::ffff:1.1.1.1": "",
		"64:ff9b::10.0.0.1": "private", "64:ff9b::127.0.0.1": "loopback", "64:ff9b::1.1.1.1": "",
		"2002:a00:1::1": "private", "2002:7f00:1::1": "loopback", "2002:101:101::1": "",

		"2606:4700::1": "", "2a00::1": "", "2001:200::1": "", "2400::1": "", "3ffe::1": "", "3fff:1000::1": "",
	} {
		got := refusal(t, netip.MustParseAddr(addr))
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: got %q; want %q", addr, got, want)
		}
	}
}

// An at is a resolver that knows one address for all names.
type at netip.Addr

func (a at) Query(_ context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	answer := &resolver.Answer{Name: name}
	if qtype == resolver.TypeAAAA {
		answer.Addrs = []netip.Addr{netip.Addr(a)}
	}
	return answer, nil
}

// refusal says why a policy host at addr is not connected to, if it is not.
func refusal(t *testing.T, addr netip.Addr) string {
	t.Helper()
	c, err := policy.NewClient(policy.Config{
		Resolver: at(addr), Roots: x509.NewCertPool(), Timeout: time.Minute,
		Dial: func(context.Context, string, string) (net.Conn, error) { return nil, io.EOF },
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Fetch(t.Context(), "example.test", nil)
	if errors.Is(err, policy.ErrAddressRefused) {
		return err.Error()
	}
	if !errors.Is(err, policy.ErrConnect) {
		t.Errorf("%s: %v", addr, err)
	}
	return ""
}

// TestMain is also the program that loads the system's authorities, since Go
// looks for them once in a process.
func TestMain(m *testing.M) {
	if os.Getenv("POLICY_TEST_SYSTEM_ROOTS") == "" {
		os.Exit(m.Run())
	}
	if _, err := policy.LoadRoots(""); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func TestTheSystemsAuthoritiesMustNotBeNone(t *testing.T) {
	ca, err := testlab.NewCA("system")
	if err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(t.TempDir(), "good.pem")
	if err := ca.WritePEM(good); err != nil {
		t.Fatal(err)
	}
	load := func(file string) (string, error) {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "POLICY_TEST_SYSTEM_ROOTS=1", "SSL_CERT_FILE="+file, "SSL_CERT_DIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := load(good); err != nil {
		t.Errorf("one authority: %v: %s", err, out)
	}
	if out, err := load("/dev/null"); err == nil || !strings.Contains(out, "ca-certificates") {
		t.Errorf("no authority: %v: %s", err, out)
	}
}

func TestLoadRoots(t *testing.T) {
	dir := t.TempDir()
	ca, err := testlab.NewCA("roots")
	if err != nil {
		t.Fatal(err)
	}
	good, empty := filepath.Join(dir, "good.pem"), filepath.Join(dir, "empty.pem")
	if err := ca.WritePEM(good); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(empty, []byte("no certificate here\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if roots, err := policy.LoadRoots(good); err != nil || !roots.Equal(ca.Pool()) {
		t.Errorf("a file with a certificate: %v", err)
	}
	for _, file := range []string{empty, filepath.Join(dir, "absent.pem"), dir} {
		if _, err := policy.LoadRoots(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
	}
}
