package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/endpoint"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
)

// filePage is the size of a page of the cache file.
const filePage = 4096

// harms are what may happen to a cache file in which a text stands at least
// once, and stands there still, in a page that can be read or in one that has
// changed. What more there is, internal/cache has.
var harms = []struct {
	name string
	do   func(file []byte, text string) []byte
}{
	{"both meta pages are zeroes", func(b []byte, _ string) []byte {
		clear(b[:2*filePage])
		return b
	}},
	{"both meta pages are noise", func(b []byte, _ string) []byte {
		r := rand.New(rand.NewPCG(1, 2))
		for i := range b[:2*filePage] {
			b[i] = byte(r.Uint32())
		}
		return b
	}},
	{"all other pages are zeroes", func(b []byte, text string) []byte {
		for at := 0; at < len(b); at += filePage {
			if page := b[at:min(at+filePage, len(b))]; !bytes.Contains(page, []byte(text)) {
				clear(page)
			}
		}
		return b
	}},
	{"the file ends with its page", func(b []byte, text string) []byte {
		return b[:(bytes.LastIndex(b, []byte(text))/filePage+1)*filePage]
	}},
	{"a bit of its text is another, wherever it stands", func(b []byte, text string) []byte {
		other := []byte(text)
		other[len(other)-1] ^= 1
		return bytes.ReplaceAll(b, []byte(text), other)
	}},
}

// TestTheDaemonEnforcesHeldPoliciesAfterDamageToItsFile has the real program
// learn a policy, harms its file while it does not run, and takes away all that
// the policy could be learned from again. A domain is not to lose its
// protection by that: it is enforced, or its mail waits.
func TestTheDaemonEnforcesHeldPoliciesAfterDamageToItsFile(t *testing.T) {
	lab := testlab.New(t)
	server := lab.PolicyServer("")
	one := lab.Domain("one.test", testlab.With{})
	dir, file := writeConfig(t, lab, testlab.DaemonConfig{})
	env := []string{"HTTPS_PROXY=" + lab.Proxy.URL()}
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	ask := func(at endpoint.Endpoint, domain string) string {
		t.Helper()
		reply, err := socketmap.Query(ctx, at, "postfix", domain)
		if err != nil {
			t.Fatalf("%s: %v", domain, err)
		}
		return reply
	}

	p := startProgram(t, dir, env, "-config", file)
	at := p.endpoint(ctx, t, dir)
	ask(at, one.Name)
	for i := range 60 { // more than a page of others
		d := lab.Domain(fmt.Sprintf("d%d.test", i), testlab.With{Server: server, NoMail: true})
		ask(at, d.Name)
	}
	p.stop(t)
	path := filepath.Join(dir, "cache.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const text = "mx: mx1.one.test"
	if !bytes.Contains(whole, []byte(text)) {
		t.Fatal("the policy is not in the file as it was served: this shows nothing")
	}
	one.RemoveRecord()
	if err := one.Policy.Server.Down(); err != nil {
		t.Fatal(err)
	}

	for _, h := range harms {
		t.Run(h.name, func(t *testing.T) {
			if err := os.WriteFile(path, h.do(bytes.Clone(whole), text), 0o600); err != nil {
				t.Fatal(err)
			}
			p := startProgram(t, dir, env, "-config", file)
			if got := ask(p.endpoint(ctx, t, dir), one.Name); !strings.HasPrefix(got, "OK secure match=mx1.one.test ") && !strings.HasPrefix(got, "TEMP ") {
				t.Errorf("the reply is %q", got)
			} else {
				t.Logf("the reply is %q", got)
			}
			p.stop(t)
			if t.Failed() {
				t.Logf("the log:\n%s", p.stderr.String())
			}
		})
	}
}
