//go:build e2e

// Package status loads the daemon's status page in a real Chromium and checks
// the resulting document.
//
// The browser runs without its sandbox, since the tests run as root. It loads
// only pages of the daemon under test.
package status

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"image/color"
	"image/png"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/store"
)

// patience limits the daemon's and the browser's time on a busy machine.
const patience = 90 * time.Second

// hostile is a policy with unknown fields that try to be markup or terminal
// controls.
const hostile = "version: STSv1\r\nmode: enforce\r\nmx: mx1.hostile.test\r\nmax_age: 604800\r\n" +
	"x-script: <script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\r\n" +
	"x-bidi: \u202egnihton\u202c\r\n"

// A daemon is the real program.
type daemon struct {
	lookups endpoint.Endpoint
	page    string // URL of the status page
	control *control.Client
}

// startDaemon builds and starts the program.
func startDaemon(ctx context.Context, t *testing.T, lab *testlab.T) *daemon {
	t.Helper()
	dir := t.TempDir()
	ca := filepath.Join(dir, "lab.pem")
	if err := lab.CA.WritePEM(ca); err != nil {
		t.Fatal(err)
	}
	program, err := testlab.BuildDaemon(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	remember(t, filepath.Join(dir, "reports.db"))
	p, err := testlab.NewDaemon(program, dir, testlab.DaemonConfig{
		DNS: lab.DNS.Addr, CA: ca, Top: `metrics = "inet:127.0.0.1:0"`, Tables: "[exempt]\ndomains = [\"exempt.test\"]\n" +
			fmt.Sprintf("[tlsrpt]\ncollect = true\npath = %q\npostfix_socket = %q\n", filepath.Join(dir, "reports.db"), "unix:"+filepath.Join(dir, "tlsrpt.sock")),
	})
	if err != nil {
		t.Fatal(err)
	}
	p.Env = append(testlab.WithoutProxies(os.Environ()), "HTTPS_PROXY="+lab.Proxy.URL())
	if err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil || t.Failed() {
			t.Errorf("the daemon stopped with %v\n%s", err, p.Log())
		}
	})
	d := &daemon{control: control.NewClient(p.Control), lookups: endpoint.Endpoint{Network: "tcp", Address: p.Address}}
	t.Cleanup(d.control.Close)
	h, err := d.control.Health(ctx)
	if err != nil {
		t.Fatal(err)
	}
	d.page = "http://" + strings.TrimPrefix(h.Metrics, "inet:")
	return d
}

// fill looks up the domains of a small relay, some more often than others, and
// then makes one policy host fail.
func fill(ctx context.Context, t *testing.T, lab *testlab.T, d *daemon) {
	t.Helper()
	lab.Domain("hostile.test", testlab.With{Policy: hostile, ID: "1"})
	lab.Domain("testing.test", testlab.With{Mode: "testing"})
	lab.Domain("none.test", testlab.With{Mode: "none"})
	failing := lab.Domain("failing.test", testlab.With{MaxAge: 30 * 24 * time.Hour})
	lab.Domain("plain.test", testlab.With{NoPolicy: true})
	lab.Domain("expired-certificate.test", testlab.With{PolicyCert: testlab.CertExpired})
	lab.Domain("not-there.test", testlab.With{PolicyFault: testlab.Status404})
	lab.Domain("page.test", testlab.With{PolicyFault: testlab.HTML})
	names := []string{"hostile.test", "testing.test", "none.test", "failing.test", "plain.test", "expired-certificate.test", "not-there.test", "page.test"}
	for i := range 60 {
		name := fmt.Sprintf("customer-%02d.test", i)
		lab.Domain(name, testlab.With{MaxAge: time.Duration(i%40+1) * 24 * time.Hour})
		names = append(names, name)
	}
	for i, name := range names {
		for range 1 + 1000/(i+1) {
			if _, err := socketmap.Query(ctx, d.lookups, "postfix", name); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	failing.Policy.Behave(testlab.Status500)
	if err := d.control.Refresh(ctx, []string{"failing.test"}, func(keeper.Refreshed) error { return nil }); err != nil {
		t.Fatal(err)
	}
}

// remember stores TLS sessions of the last two weeks. Of two days nothing is known, and on
// one no session failed.
func remember(t *testing.T, path string) {
	t.Helper()
	s, err := store.Open(path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	policies := func(domain string) map[string]tlsrpt.Policy {
		return map[string]tlsrpt.Policy{
			"enforce": {Type: tlsrpt.TypeSTS, Domain: domain, Strings: []string{"version: STSv1", "mode: enforce"}},
			"testing": {Type: tlsrpt.TypeSTS, Domain: domain, Strings: []string{"version: STSv1", "mode: testing"}},
			"none":    {Type: tlsrpt.TypeNone, Domain: domain},
		}
	}
	var batch store.Batch
	for ago := 13; ago >= 0; ago-- {
		if ago == 9 || ago == 8 {
			continue
		}
		batch.Reset(tlsrpt.DayOf(time.Now().UTC().AddDate(0, 0, -ago)))
		add := func(domain, policy string, all, failed int, result tlsrpt.ResultType) {
			for i := range all {
				e := tlsrpt.Event{Domain: domain, Policy: policies(domain)[policy], Failed: i < failed}
				if e.Failed {
					e.Failures = []tlsrpt.Failure{{Result: result, MXHost: "mx." + domain}}
				}
				batch.Add(&e)
			}
		}
		add("good.test", "enforce", 900, 0, "")
		if ago != 6 {
			add("self-signed.test", "testing", 40, 40-ago, tlsrpt.CertificateNotTrusted)
			add("clear.test", "none", 30+ago, 30+ago, tlsrpt.StartTLSNotSupported)
		}
		if ago >= 10 {
			add("mended.example", "enforce", 60, 60, tlsrpt.CertificateHostMismatch)
		} else {
			add("mended.example", "enforce", 60, 0, "")
		}
		add("just-expired.bank.test", "enforce", 80, map[int]int{0: 75, 1: 30}[ago], tlsrpt.CertificateExpired)
		if err := s.Write(&batch); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// browse loads a page in Chromium and returns its output.
func browse(ctx context.Context, t *testing.T, flags ...string) string {
	t.Helper()
	args := append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--hide-scrollbars", "--user-data-dir=" + t.TempDir(),
	}, flags...)
	c := exec.CommandContext(ctx, "chromium", args...)
	var out, log bytes.Buffer
	c.Stdout, c.Stderr = &out, &log
	if err := c.Run(); err != nil {
		t.Fatalf("chromium (Debian package chromium): %v\n%s", err, &log)
	}
	return out.String()
}

// text returns a document's text with normalized white space.
func text(dom string) string {
	return strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(dom, " ")), " ")
}

func TestTheStatusPageInARealBrowser(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lab := testlab.New(t)
	d := startDaemon(ctx, t, lab)
	fill(ctx, t, lab, d)
	page := d.page
	packets := lab.DNS.Total()

	dom := browse(ctx, t, "--dump-dom", page+"/?domain="+url.QueryEscape("someone@Hostile.test"))
	shown := text(dom)
	for _, want := range []string{
		"64 policies in the cache", "enforce 62", "testing 1", "none 1",
		"Nothing is wrong that the daemon can see.",
		"hostile.test mode enforce",                                     // the answer
		"x-script: &lt;script&gt;document.title='owned'&lt;/script&gt;", // escaped
		`x-bidi: \u{202e}gnihton\u{202c}`,                               // escaped, too
		"demands mail goes over verified TLS to a listed host",
		"expired-certificate.test", "sts-webpki-invalid", "not-there.test", "HTTP status 404", "sts-policy-fetch-error",
		"1 fetch sts-policy-fetch-error the policy host answered with HTTP status 500",
	} {
		if !strings.Contains(shown, want) {
			t.Errorf("missing: %s", want)
		}
	}
	for _, never := range []string{"<script", "<img", "\u202e", "<title>owned"} {
		if strings.Contains(dom, never) {
			t.Errorf("the document must not contain: %s", never)
		}
	}
	if t.Failed() {
		t.Logf("%s", dom)
	}

	// The overview marks exempt and unknown domains.
	for question, want := range map[string]string{
		"exempt.test":      "exempt by [exempt] in the configuration: every map replies NOTFOUND",
		"plain.test":       "not found no-record; not tried again before",
		"never-asked.test": "Nothing is held for never-asked.test.",
		"\u202e<b>.test":   "Ask for the domain of a recipient",
	} {
		if got := text(get(ctx, t, page+"/?domain="+url.QueryEscape(question))); !strings.Contains(got, want) {
			t.Errorf("%s: %s", question, got)
		}
	}
	if n := lab.DNS.Total() - packets; n != 0 {
		t.Errorf("the page caused %d DNS questions: %v", n, lab.DNS.Questions()[packets:])
	}

	list := browse(ctx, t, "--dump-dom", page+"/policies?from=customer-5")
	if n := strings.Count(list, `<a href="/?domain=customer-5`); n != 10 || !strings.Contains(list, `<a href="/?domain=failing.test#explain">`) {
		t.Errorf("the list from customer-5 on has %d of ten customers:\n%s", n, text(list))
	}
	o, err := d.control.Destinations(ctx) // the page shows what it has made
	if err != nil || o.Failed != 4 {
		t.Fatalf("got %+v, %v", o, err)
	}
	shown = text(browse(ctx, t, "--dump-dom", page+"/tls"))
	at := 0
	for _, want := range []string{"145 of 1,110 sessions failed", "just-expired.bank.test", "(new)", "self-signed.test", "clear.test", "mended.example", "none known"} {
		next := strings.Index(shown[at:], want)
		if next < 0 {
			t.Errorf("the page about TLS reports has no %s where it should: %s", want, shown)
		}
		at += max(0, next)
	}
	folder := cmp.Or(os.Getenv("STS_TLSMAP_SCREENSHOTS"), t.TempDir())
	for _, scheme := range []string{"light", "dark"} {
		for width, height := range map[int]int{1060: 1400, 390: 1900} {
			picture(ctx, t, filepath.Join(folder, fmt.Sprintf("status-%d-%s.png", width, scheme)), scheme, width, height, page+"/")
		}
		picture(ctx, t, filepath.Join(folder, "status-list-"+scheme+".png"), scheme, 390, 900, page+"/policies?from=f")
		picture(ctx, t, filepath.Join(folder, "status-tls-1060-"+scheme+".png"), scheme, 1060, 760, page+"/tls")
		picture(ctx, t, filepath.Join(folder, "status-tls-390-"+scheme+".png"), scheme, 390, 1300, page+"/tls")
	}
}

// picture takes a screenshot and checks its size, its scheme, and that nothing is cut
// off at the right.
func picture(ctx context.Context, t *testing.T, file, scheme string, width, height int, address string) {
	t.Helper()
	blink := map[string]string{"light": "1", "dark": "0"}[scheme]
	browse(ctx, t, fmt.Sprintf("--window-size=%d,%d", width, height), "--blink-settings=preferredColorScheme="+blink, "--screenshot="+file, address)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	bounds := img.Bounds()
	if bounds.Dx() != width || bounds.Dy() != height {
		t.Errorf("%s is %v", file, bounds)
	}
	back := color.GrayModel.Convert(img.At(2, 2)).(color.Gray).Y
	if (back < 128) != (scheme == "dark") {
		t.Errorf("%s: the background has brightness %d", file, back)
	}
	for y := range bounds.Dy() { // the margin stays free
		if img.At(width-4, y) != img.At(2, 2) {
			t.Errorf("%s: something reaches over the right margin at %d", file, y)
			break
		}
	}
}

func get(ctx context.Context, t *testing.T, address string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", address, res.Status, err)
	}
	return string(body)
}
