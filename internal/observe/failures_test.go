package observe

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

func failed(step keeper.Step, domain string, result policy.Result, err error) keeper.Event {
	return keeper.Event{Step: step, Domain: domain, Result: result, Err: err}
}

func domains(fs []Failure) string {
	var names []string
	for _, f := range fs {
		names = append(names, f.Domain)
	}
	return strings.Join(names, " ")
}

func TestStrangersDoNotCrowdOutPoliciesThatAreHeld(t *testing.T) {
	var f Failures
	f.Observe(failed(keeper.StepFetch, "held.test", policy.ResultWebPKI, policy.ErrCertExpired))
	for i := range 10_000 {
		f.Observe(failed(keeper.StepDiscovery, fmt.Sprintf("stranger-%d.test", i), policy.ResultDNS, errors.New(strings.Repeat("x", 100_000))))
	}
	if got := domains(f.held.last(maxFailures)); got != "held.test" {
		t.Errorf("held: %s", got)
	}
	got := f.strangers.last(1000)
	if len(got) != maxFailures || got[0].Domain != "stranger-9999.test" || len(got[0].Reason) > policy.MaxReason+3 || len(f.strangers.byName) != maxFailures {
		t.Errorf("%d strangers, the last one %s with %d bytes", len(got), got[0].Domain, len(got[0].Reason))
	}
}

func TestADomainIsListedOnceWithItsLastFailureUntilItIsWell(t *testing.T) {
	var f Failures
	f.Observe(failed(keeper.StepFetch, "one.test", policy.ResultFetch, errors.New("first")))
	f.Observe(failed(keeper.StepFetch, "two.test", policy.ResultFetch, errors.New("other")))
	f.Observe(failed(keeper.StepFetch, "one.test", policy.ResultInvalid, &policy.Error{Domain: "one.test", Result: policy.ResultInvalid, Err: errors.New("second")}))
	got := f.held.last(10)
	if domains(got) != "one.test two.test" || got[0].Times != 2 || got[0].Reason != "second" || got[0].Result != policy.ResultInvalid {
		t.Errorf("got %+v", got)
	}
	// A TXT record that is found does not mend the policy host; a fetch does.
	f.Observe(keeper.Event{Step: keeper.StepCheck, Domain: "one.test", Result: policy.ResultOK})
	if got := domains(f.held.last(10)); got != "one.test two.test" {
		t.Errorf("after a check: %s", got)
	}
	f.Observe(keeper.Event{Step: keeper.StepFetch, Domain: "one.test", Result: policy.ResultOK})
	if got := domains(f.held.last(10)); got != "two.test" {
		t.Errorf("after a fetch: %s", got)
	}
}

func TestThatADomainHasNoPolicyIsNoFailureButThatARecordIsGoneIs(t *testing.T) {
	var f Failures
	gone := errors.New("there is no TXT record")
	f.Observe(failed(keeper.StepDiscovery, "plain.test", policy.ResultNoRecord, gone))
	f.Observe(failed(keeper.StepCheck, "held.test", policy.ResultNoRecord, gone))
	if strangers, held := domains(f.strangers.last(10)), domains(f.held.last(10)); strangers != "" || held != "held.test" {
		t.Errorf("strangers %q, held %q", strangers, held)
	}
}

func TestADomainThatIsFoundAnewHasNoFailuresInEitherList(t *testing.T) {
	for _, step := range []keeper.Step{keeper.StepDiscovery, keeper.StepFetch} {
		var f Failures
		f.Observe(failed(keeper.StepFetch, "held.test", policy.ResultFetch, errors.New("while it was held")))
		f.Observe(failed(keeper.StepDiscovery, "held.test", policy.ResultFetch, errors.New("once it had expired")))
		f.Observe(keeper.Event{Step: step, Domain: "held.test", Result: policy.ResultOK})
		if held, strangers := domains(f.held.last(10)), domains(f.strangers.last(10)); held+strangers != "" {
			t.Errorf("after a %s: held %q, strangers %q", step, held, strangers)
		}
	}
}
