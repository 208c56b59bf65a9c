package keeper

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

func TestAttemptsUpdateTheHealthOfDNSAndFetches(t *testing.T) {
	fetch := func(result policy.Result, err error) error {
		return &policy.Error{Domain: "a.test", Result: result, Err: fmt.Errorf("%w: in words", err)}
	}
	for _, test := range []struct {
		name       string
		err        error
		dns, fetch sign
	}{
		{"a policy", nil, signGood, signGood},
		{"no record", fetch(policy.ResultNoRecord, policy.ErrNoRecord), signGood, signNone},
		{"a record that is no good", fetch(policy.ResultRecordInvalid, policy.ErrRecordInvalid), signGood, signNone},
		{"no answer of the DNS", fetch(policy.ResultDNS, policy.ErrRecordLookup), signBad, signNone},
		{"404", fetch(policy.ResultFetch, &policy.StatusError{Code: 404}), signGood, signGood},
		{"503", fetch(policy.ResultFetch, &policy.StatusError{Code: 503}), signGood, signGood},
		{"a redirect", fetch(policy.ResultFetch, &policy.StatusError{Code: 301}), signGood, signGood},
		{"HTML", fetch(policy.ResultFetch, policy.ErrMediaType), signGood, signGood},
		{"too much", fetch(policy.ResultFetch, policy.ErrTooLarge), signGood, signGood},
		{"no HTTP", fetch(policy.ResultFetch, policy.ErrHTTP), signGood, signGood},
		{"no policy in it", fetch(policy.ResultInvalid, policy.ErrInvalid), signGood, signGood},
		{"another name", fetch(policy.ResultWebPKI, policy.ErrCertName), signGood, signNone},
		{"an old certificate", fetch(policy.ResultWebPKI, policy.ErrCertExpired), signGood, signNone},
		{"an unknown authority", fetch(policy.ResultWebPKI, policy.ErrCertUntrusted), signGood, signBad},
		{"no address", fetch(policy.ResultFetch, policy.ErrHostAbsent), signGood, signNone},
		{"a private address", fetch(policy.ResultFetch, policy.ErrAddressRefused), signGood, signNone},
		{"no turn", fetch(policy.ResultBusy, policy.ErrBusy), signNone, signNone},
		{"no connection", fetch(policy.ResultFetch, policy.ErrConnect), signGood, signBad},
		{"no handshake", fetch(policy.ResultFetch, policy.ErrTLS), signGood, signBad},
		{"silence", fetch(policy.ResultFetch, policy.ErrTimeout), signGood, signBad},
		{"a proxy that refuses", fetch(policy.ResultFetch, policy.ErrProxy), signGood, signBad},
		{"no answer for the host", fetch(policy.ResultFetch, policy.ErrHostLookup), signGood, signBad},
	} {
		if got := fetchSign(test.err); got != test.fetch {
			t.Errorf("%s: of the fetch %d, want %d", test.name, got, test.fetch)
		}
		if got := recordSign(test.err); got != test.dns {
			t.Errorf("%s: of the DNS %d, want %d", test.name, got, test.dns)
		}
	}
}

func TestWhenFailuresAreTrouble(t *testing.T) {
	type at struct {
		minute int
		domain string
		err    error
	}
	connect, untrusted := error(policy.ErrConnect), error(policy.ErrCertUntrusted)
	fetch := func(minute int, domain string, err error) at {
		if err != nil {
			result := policy.ResultFetch
			if errors.Is(err, policy.ErrCertUntrusted) || errors.Is(err, policy.ErrCertName) {
				result = policy.ResultWebPKI
			}
			err = &policy.Error{Domain: domain, Result: result, Err: err}
		}
		return at{minute, domain, err}
	}
	for _, test := range []struct {
		name             string
		events           []at
		look             int // minute of the last look; they are a minute apart
		trouble          bool
		mostlyUntrusted  bool
		troubleInBetween bool
	}{
		{"three broken domains, then a quiet hour", []at{
			fetch(0, "a", connect), fetch(0, "b", connect), fetch(1, "c", connect)}, 60, false, false, false},
		{"many failures in one minute, then a quiet hour", []at{
			fetch(0, "a", connect), fetch(0, "b", connect), fetch(0, "c", connect), fetch(0, "d", connect)}, 60, false, false, false},
		{"failures that go on", []at{
			fetch(0, "a", connect), fetch(2, "b", connect), fetch(4, "c", connect), fetch(6, "d", connect)}, 6, true, false, true},
		{"and then nobody tries", []at{
			fetch(0, "a", connect), fetch(2, "b", connect), fetch(4, "c", connect), fetch(6, "d", connect)}, 90, true, false, true},
		{"until one succeeds", []at{
			fetch(0, "a", connect), fetch(2, "b", connect), fetch(6, "c", connect), fetch(20, "d", nil)}, 21, false, false, true},
		{"two domains, again and again", []at{
			fetch(0, "a", connect), fetch(3, "b", connect), fetch(6, "a", connect), fetch(9, "b", connect)}, 10, false, false, false},
		{"a 404 between", []at{
			fetch(0, "a", connect), fetch(2, "b", connect), fetch(4, "x", &policy.StatusError{Code: 404}), fetch(6, "c", connect)}, 7, false, false, false},
		{"wrong names only", []at{
			fetch(0, "a", policy.ErrCertName), fetch(3, "b", policy.ErrCertName), fetch(6, "c", policy.ErrCertName)}, 7, false, false, false},
		{"authorities are missing", []at{
			fetch(0, "a", untrusted), fetch(3, "b", untrusted), fetch(6, "c", untrusted)}, 7, true, true, true},
		{"one certificate among closed ports", []at{
			fetch(0, "a", connect), fetch(3, "b", connect), fetch(6, "c", untrusted)}, 7, true, false, true},
		{"closed ports first, then missing authorities", []at{
			fetch(0, "a", connect), fetch(3, "b", connect), fetch(6, "c", connect), fetch(7, "d", untrusted), fetch(8, "e", untrusted)}, 9, true, true, true},
	} {
		var h health
		start := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
		trouble, between := false, false
		for minute := range test.look + 1 {
			now := start.Add(time.Duration(minute) * time.Minute)
			for _, e := range test.events {
				if e.minute == minute {
					h.https.note(fetchSign(e.err), e.domain, e.err, now)
				}
			}
			trouble, _ = h.https.look(now)
			between = between || trouble
		}
		if trouble != test.trouble || between != test.troubleInBetween {
			t.Errorf("%s: trouble %v at the end, %v at all", test.name, trouble, between)
		}
		if _, https, got := h.failing(); https != test.trouble || got != test.mostlyUntrusted {
			t.Errorf("%s: https %v, untrusted %v", test.name, https, got)
		}
	}
}

func TestOldDNSFailuresBeforeAQuietHourAreNoCondition(t *testing.T) {
	lame := &policy.Error{Result: policy.ResultDNS, Err: policy.ErrRecordLookup}
	start := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	var h health
	for _, domain := range []string{"a", "b", "c"} {
		h.dns.note(recordSign(lame), domain, lame, start)
	}
	for minute := range 60 {
		if trouble, _ := h.dns.look(start.Add(time.Duration(minute) * time.Minute)); trouble {
			t.Fatalf("trouble after %d minutes", minute)
		}
	}
}
