package policy_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// serve has the policy host answer with the header lines and the body.
func serve(h *testlab.PolicyHost, body string, header ...string) {
	h.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, strings.Join(header, "\r\n")+"\r\n\r\n"+body)
	}))
}

func TestRFC8461_3_3_TheMediaTypeIsTextPlainWithAnyParameters(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	c := newClient(t, lab, nil)
	length := fmt.Sprintf("Content-Length: %d", len(exampleText))
	for media, ok := range map[string]bool{
		"text/plain": true, "TEXT/Plain": true, "text/plain; charset=utf-8": true, "text/plain ;charset=shift_jis": true,
		"text/plain; charset=utf-8; charset=utf-8": true, "text/plain; =": true, "text/plain;": true,
		"text/html": false, "text/plainer": false, "text": false, "application/octet-stream": false, "": false,
		"text/html; x=text/plain": false, "text/html, text/plain": false,
	} {
		serve(d.Policy, exampleText, "HTTP/1.1 200 OK", "Content-Type: "+media, length)
		_, err := c.Fetch(t.Context(), "example.test", nil)
		if ok && err != nil {
			t.Errorf("%q: %v", media, err)
		}
		if !ok {
			wantError(t, err, "example.test", policy.ResultFetch, policy.ErrMediaType)
		}
	}
}

func TestRFC8461_3_3_TheBodyIsLimited(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	c := newClient(t, lab, nil)
	full := exampleText + "x: "
	full += strings.Repeat("y", policy.MaxText-len(full))
	const ok, plain = "HTTP/1.1 200 OK", "Content-Type: text/plain"
	chunked := func(body string, size int) string {
		var b bytes.Buffer
		for part := range bytesOf(body, size) {
			fmt.Fprintf(&b, "%x\r\n%s\r\n", len(part), part)
		}
		return b.String() + "0\r\n\r\n"
	}
	for name, body := range map[string]string{"a length": full, "chunks": chunked(full, 1000), "the end": full} {
		framing := map[string]string{"a length": fmt.Sprintf("Content-Length: %d", len(full)), "chunks": "Transfer-Encoding: chunked", "the end": "X: y"}
		serve(d.Policy, body, ok, plain, framing[name])
		if f, err := c.Fetch(t.Context(), "example.test", nil); err != nil || string(f.Text) != full {
			t.Errorf("%d bytes, by %s: %v", len(full), name, err)
		}
		if name != "chunks" {
			body += "y"
		} else {
			body = chunked(full+"y", 1000)
		}
		serve(d.Policy, body, ok, plain, strings.Replace(framing[name], "65536", "65537", 1))
		_, err := c.Fetch(t.Context(), "example.test", nil)
		wantError(t, err, "example.test", policy.ResultFetch, policy.ErrTooLarge)
	}
	for name, body := range map[string]string{
		"endless extensions":  "1;" + strings.Repeat("x", 1<<20),
		"a trailer too large": strings.TrimSuffix(chunked(exampleText, 1000), "\r\n") + strings.Repeat("X: y\r\n", 1<<16) + "\r\n",
	} {
		serve(d.Policy, body, ok, plain, "Transfer-Encoding: chunked")
		if _, err := c.Fetch(t.Context(), "example.test", nil); policy.ResultOf(err) != policy.ResultFetch {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// bytesOf yields s in pieces of size bytes.
func bytesOf(s string, size int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for len(s) > size {
			if !yield(s[:size]) {
				return
			}
			s = s[size:]
		}
		yield(s)
	}
}

func TestRFC8461_3_3_OddHTTP(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	c := newClient(t, lab, nil)
	const plain = "Content-Type: text/plain"
	length := fmt.Sprintf("Content-Length: %d", len(exampleText))
	long := fmt.Sprintf("Content-Length: %d", len(exampleText)+1)
	for _, tt := range []struct {
		name   string
		header []string
		want   error // nil: accepted
	}{
		{"HTTP/1.0", []string{"HTTP/1.0 200 OK", plain}, nil},
		{"no reason phrase", []string{"HTTP/1.1 200", plain, length}, nil},
		{"provisional answers before", []string{"HTTP/1.1 103 Early Hints", "Link: x", "", "HTTP/1.1 100 Continue", "", "HTTP/1.1 200 OK", plain, length}, nil},
		{"identity", []string{"HTTP/1.1 200 OK", plain, length, "Content-Encoding: identity"}, nil},
		{"too many provisional answers", provisional(policy.MaxHeader/20, "HTTP/1.1 200 OK", plain, length), policy.ErrHTTP},
		{"two lengths", []string{"HTTP/1.1 200 OK", plain, length, "Content-Length: 7"}, policy.ErrHTTP},
		{"a length below zero", []string{"HTTP/1.1 200 OK", plain, "Content-Length: -1"}, policy.ErrHTTP},
		{"a length that is too long", []string{"HTTP/1.1 200 OK", plain, long}, policy.ErrHTTP},
		{"an unknown transfer encoding", []string{"HTTP/1.1 200 OK", plain, "Transfer-Encoding: gzip, chunked"}, policy.ErrHTTP},
		{"a compression that was not asked for", []string{"HTTP/1.1 200 OK", plain, length, "Content-Encoding: br"}, policy.ErrHTTP},
		{"a header without a colon", []string{"HTTP/1.1 200 OK", plain, length, "\x1b[2J"}, policy.ErrHTTP},
		{"an escape sequence as the status", []string{"\x1b[2J 200 OK", plain, length}, policy.ErrHTTP},
		{"switching protocols", []string{"HTTP/1.1 101 Switching Protocols", plain, length}, &policy.StatusError{Code: 101}},
		{"partial content", []string{"HTTP/1.1 206 Partial", plain, length}, &policy.StatusError{Code: 206}},
		{"not modified", []string{"HTTP/1.1 304 Not Modified", plain, length}, &policy.StatusError{Code: 304}},
		{"a nasty redirect", []string{"HTTP/1.1 301 Moved", "Location: \u009b2J\xff" + strings.Repeat("x", 5000)}, &policy.StatusError{Code: 301}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			serve(d.Policy, exampleText, tt.header...)
			f, err := c.Fetch(t.Context(), "example.test", nil)
			var want, got *policy.StatusError
			switch {
			case tt.want == nil && (err != nil || string(f.Text) != exampleText):
				t.Errorf("got %+v, %v", f, err)
			case errors.As(tt.want, &want):
				if !errors.As(err, &got) || got.Code != want.Code {
					t.Fatalf("got %v; want status %d", err, want.Code)
				}
				wantError(t, err, "example.test", policy.ResultFetch, got)
			case tt.want != nil:
				wantError(t, err, "example.test", policy.ResultFetch, tt.want)
			}
		})
	}
}

// provisional puts n provisional answers before the lines of another.
func provisional(n int, lines ...string) []string {
	var all []string
	for range n {
		all = append(all, "HTTP/1.1 100 Continue", "")
	}
	return append(all, lines...)
}

// RFC 8461, 10.3: whoever sits on the way must not be able to cut a policy.
func TestRFC8461_10_3_ATextThatEndsWithTheConnectionMustEndWithinTLS(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	d.Policy.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"+exampleText)
		conn.(*tls.Conn).NetConn().Close()
	}))
	_, err := newClient(t, lab, nil).Fetch(t.Context(), "example.test", nil)
	wantError(t, err, "example.test", policy.ResultFetch, policy.ErrHTTP)
	if !strings.Contains(err.Error(), "without saying so within TLS") {
		t.Errorf("got %v", err)
	}
}

func TestRFC8461_3_3_ABrokenPolicyIsNone(t *testing.T) {
	lab := testlab.New(t)
	lab.Domain("example.test", testlab.With{NoMail: true, Policy: "version: STSv1\nmode: enforce\nmax_age: 1\n"})
	_, err := newClient(t, lab, nil).Fetch(t.Context(), "example.test", nil)
	wantError(t, err, "example.test", policy.ResultInvalid, policy.ErrInvalid)
}

func TestRFC8461_7_2_TLS12AndLaterTowardsThePolicyHost(t *testing.T) {
	lab := testlab.New(t)
	d := lab.Domain("example.test", testlab.With{NoMail: true})
	c := newClient(t, lab, nil)
	d.Policy.Behave(testlab.OldTLS)
	_, err := c.Fetch(t.Context(), "example.test", nil)
	wantError(t, err, "example.test", policy.ResultFetch, policy.ErrTLS)
	for fault, version := range map[testlab.PolicyFault]uint16{testlab.TLS12Only: tls.VersionTLS12, testlab.PolicyFine: tls.VersionTLS13} {
		d.Policy.Behave(fault)
		d.Policy.Forget()
		if _, err := c.Fetch(t.Context(), "example.test", nil); err != nil {
			t.Fatal(err)
		}
		if r := d.Policy.Requests(); r[0].TLSVersion != version {
			t.Errorf("TLS version %#x; want %#x", r[0].TLSVersion, version)
		}
	}
}
