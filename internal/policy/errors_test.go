package policy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

func TestWhichFailuresAreOurFault(t *testing.T) {
	socket := func(errno error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", errno)}
	}
	lookup := func(kind resolver.Kind) error { return &resolver.Error{Name: "mta-sts.example.com", Kind: kind} }
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"no place at the gate", policy.ErrBusy, true},
		{"the daemon shuts down", context.Canceled, true},
		{"no descriptor", fmt.Errorf("%w: %w", policy.ErrConnect, socket(syscall.EMFILE)), true},
		{"no descriptor in the system", fmt.Errorf("%w: %w", policy.ErrHostLookup, socket(syscall.ENFILE)), true},
		{"no buffers", socket(syscall.ENOBUFS), true},
		{"no DNS server reached", fmt.Errorf("%w: %w", policy.ErrRecordLookup, lookup(resolver.KindUnreachable)), true},
		{"the proxy", policy.ErrProxy, true},
		{"no roots", policy.ErrNoRoots, true},
		{"a clock in doubt", fmt.Errorf("%w; %w", policy.ErrCertExpired, policy.ErrClock), true},

		{"success", nil, false},
		{"no record", policy.ErrNoRecord, false},
		{"two records", policy.ErrManyRecords, false},
		{"a broken record", policy.ErrRecordInvalid, false},
		{"SERVFAIL", fmt.Errorf("%w: %w", policy.ErrRecordLookup, lookup(resolver.KindServFail)), false},
		{"REFUSED", lookup(resolver.KindRefused), false},
		{"silent DNS", lookup(resolver.KindTimeout), false},
		{"the lookup's time is up", context.DeadlineExceeded, false},
		{"no address", policy.ErrHostAbsent, false},
		{"a special address", policy.ErrAddressRefused, false},
		{"connection refused", fmt.Errorf("%w: %w", policy.ErrConnect, socket(syscall.ECONNREFUSED)), false},
		{"no route to the policy host", fmt.Errorf("%w: %w", policy.ErrConnect, socket(syscall.ENETUNREACH)), false},
		{"a silent policy host", policy.ErrTimeout, false},
		{"no TLS", policy.ErrTLS, false},
		{"another name", policy.ErrCertName, false},
		{"an expired certificate", policy.ErrCertExpired, false},
		{"an unknown authority", policy.ErrCertUntrusted, false},
		{"no HTTP", policy.ErrHTTP, false},
		{"404", &policy.StatusError{Code: 404}, false},
		{"a broken policy", policy.ErrInvalid, false},
		{"another error", errors.New("x"), false},
	} {
		err := tt.err
		if err != nil {
			err = &policy.Error{Domain: "example.com", Result: policy.ResultFetch, Err: err}
		}
		if got := policy.OurFault(err); got != tt.want {
			t.Errorf("%s: OurFault is %v", tt.name, got)
		}
	}
}

func TestTheReasonOfAFailureIsShort(t *testing.T) {
	long := &policy.Error{Domain: "example.com", Result: policy.ResultDNS, Err: errors.New(strings.Repeat("é", 4000))}
	if got := policy.Reason(long); len(got) > policy.MaxReason+len("...") || strings.ContainsRune(got, '\uFFFD') {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}
