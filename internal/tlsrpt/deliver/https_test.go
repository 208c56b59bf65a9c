package deliver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/deliver"
)

// A receiver is a web server of the lab.
type receiver struct {
	lab  *testlab.T
	host *testlab.PolicyHost
}

// newReceiver starts a web server with a name.
func newReceiver(t *testing.T, name string, handler http.HandlerFunc) *receiver {
	t.Helper()
	lab := testlab.New(t)
	server := lab.PolicyServer("")
	host, err := server.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	host.Handle(handler)
	lab.Set(fmt.Sprintf("%s. 60 IN A %s", name, server.Addr))
	return &receiver{lab, host}
}

// poster returns the function that posts to the lab.
func (r *receiver) poster(t *testing.T, verify, allowPrivate bool) func(ctx context.Context, url string, compressed []byte) error {
	t.Helper()
	dns, err := resolver.New(resolver.Config{Servers: []netip.AddrPort{netip.MustParseAddrPort(r.lab.DNS.Addr)}})
	if err != nil {
		t.Fatal(err)
	}
	client, err := policy.NewClient(policy.Config{Resolver: dns, Roots: r.lab.CA.Pool(), AllowPrivate: allowPrivate, Dial: r.lab.Dial, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return deliver.HTTPS(client, verify, "sts-tlsmap/test")
}

func TestRFC8460_5_4_AReportIsPosted(t *testing.T) {
	var got []string
	r := newReceiver(t, "reports.example.test", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		got = append(got, fmt.Sprintf("%s %s %s %s %q %v", r.Method, r.Host, r.URL, r.Header.Get("Content-Type"), body, err))
		w.WriteHeader(http.StatusCreated)
	})
	if err := r.poster(t, true, true)(t.Context(), "https://reports.example.test/v1?a=%2C", []byte("compressed")); err != nil {
		t.Fatal(err)
	}
	if want := `POST reports.example.test /v1?a=%2C application/tlsrpt+gzip "compressed" <nil>`; len(got) != 1 || got[0] != want {
		t.Errorf("got %q; want %q", got, want)
	}
}

func TestRFC8460_5_4_WhatAnAnswerMeans(t *testing.T) {
	code, after, requests := 0, "", 0
	r := newReceiver(t, "reports.example.test", func(w http.ResponseWriter, _ *http.Request) {
		requests++
		w.Header().Set("Retry-After", after)
		w.Header().Set("Location", "https://elsewhere.test/")
		w.WriteHeader(code)
	})
	post := r.poster(t, true, true)
	for _, tt := range []struct {
		code    int
		after   string
		ok      bool
		refused bool
		wait    time.Duration
	}{
		{200, "", true, false, 0}, {201, "", true, false, 0}, {202, "", true, false, 0}, {204, "", true, false, 0},
		{203, "", false, false, 0}, {301, "", false, false, 0}, {302, "", false, false, 0}, {307, "", false, false, 0}, {308, "", false, false, 0},
		{400, "", false, true, 0}, {401, "", false, true, 0}, {404, "60", false, true, 0}, {413, "", false, true, 0},
		{408, "", false, false, 0}, {425, "", false, false, 0}, {429, "120", false, false, 2 * time.Minute},
		{500, "", false, false, 0}, {503, "7200", false, false, 2 * time.Hour}, {503, "soon", false, false, 0}, {503, "-5", false, false, 0},
		{503, time.Now().Add(3 * time.Hour).UTC().Format(http.TimeFormat), false, false, 3 * time.Hour},
	} {
		code, after, requests = tt.code, tt.after, 0
		err := post(t.Context(), "https://reports.example.test/", []byte("x"))
		var later *deliver.LaterError
		wait := time.Duration(0)
		if errors.As(err, &later) {
			wait = later.After.Round(time.Minute)
		}
		if requests != 1 || (err == nil) != tt.ok || errors.Is(err, deliver.ErrRefused) != tt.refused || wait != tt.wait {
			t.Errorf("%d %q: got %v, later %v, after %d requests", tt.code, tt.after, err, wait, requests)
		}
	}
}

func TestRFC8460_3_TheCertificateIsCheckedIfTheConfigurationSaysSo(t *testing.T) {
	r := newReceiver(t, "reports.example.test", func(http.ResponseWriter, *http.Request) {})
	if err := r.host.Present(testlab.CertOtherCA); err != nil {
		t.Fatal(err)
	}
	if err := r.poster(t, false, true)(t.Context(), "https://reports.example.test/", []byte("x")); err != nil {
		t.Errorf("not checked: %v", err)
	}
	if err := r.poster(t, true, true)(t.Context(), "https://reports.example.test/", []byte("x")); err == nil || !strings.Contains(err.Error(), "the receiver's certificate is not from a trusted authority") {
		t.Errorf("checked: %v", err)
	}
}

// Anybody can publish a record that names a host within our network.
func TestReportsAreNotPostedIntoOurNetwork(t *testing.T) {
	r := newReceiver(t, "reports.example.test", func(http.ResponseWriter, *http.Request) { t.Error("it was") })
	r.lab.Set("metadata.example.test. 60 IN A 169.254.169.254", "router.example.test. 60 IN AAAA fe80::1")
	post := r.poster(t, false, false)
	for _, name := range []string{"reports", "metadata", "router"} {
		err := post(t.Context(), "https://"+name+".example.test/", []byte("x"))
		if err == nil || errors.Is(err, deliver.ErrRefused) || !strings.Contains(err.Error(), "the receiver's address is not a public one") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnAnswerWithoutEndEndsTheAttempt(t *testing.T) {
	endless := func(write func(w http.ResponseWriter)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body) // else the server does not see that the client is gone
			for r.Context().Err() == nil {
				write(w)
			}
		}
	}
	body := newReceiver(t, "reports.example.test", endless(func(w http.ResponseWriter) { w.Write(bytes.Repeat([]byte("a"), 1<<16)) }))
	if err := body.poster(t, true, true)(t.Context(), "https://reports.example.test/", []byte("x")); err != nil {
		t.Errorf("an endless body: %v", err)
	}
	header := newReceiver(t, "reports.example.test", func(w http.ResponseWriter, r *http.Request) {
		for i := range 1000 {
			w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("a", 100))
		}
	})
	if err := header.poster(t, true, true)(t.Context(), "https://reports.example.test/", []byte("x")); err == nil || errors.Is(err, deliver.ErrRefused) {
		t.Errorf("a header of 100 KB: %v", err)
	}
	silent := newReceiver(t, "reports.example.test", func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := silent.poster(t, true, true)(ctx, "https://reports.example.test/", []byte("x")); err == nil || errors.Is(err, deliver.ErrRefused) || time.Since(start) > 20*time.Second {
		t.Errorf("no answer: %v after %v", err, time.Since(start))
	}
}
