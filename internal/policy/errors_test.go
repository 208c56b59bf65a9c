package policy

import (
	"errors"
	"strings"
	"testing"
)

func TestWhatIsRememberedOfAFailureIsShort(t *testing.T) {
	long := &Error{Domain: "example.com", Result: ResultDNS, Err: errors.New(strings.Repeat("é", 4000))}
	if got := Reason(long); len(got) > MaxReason+len("...") || strings.ContainsRune(got, '\uFFFD') {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}
