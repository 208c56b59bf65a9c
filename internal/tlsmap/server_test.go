package tlsmap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/keeper"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
	"github.com/sts-tlsmap/sts-tlsmap/internal/socketmap"
)

var _ socketmap.Handler = (*Server)(nil)

// A heldPolicy is what the fake says of a domain.
type heldPolicy struct {
	mode   policy.Mode
	ready  []byte
	entry  *keeper.Entry // nil: as from the store
	failed error
}

// fakePolicies holds policies by domain.
type fakePolicies struct {
	mu    sync.Mutex
	held  map[string]*heldPolicy
	asked []string
	mute  bool // do not note what is asked
}

func (f *fakePolicies) Lookup(_ context.Context, domain []byte, h *keeper.Held) error {
	if !f.mute {
		f.mu.Lock()
		f.asked = append(f.asked, string(domain))
		f.mu.Unlock()
	}
	p, ok := f.held[string(domain)]
	if !ok {
		return keeper.ErrNoPolicy
	}
	h.Mode, h.Ready, h.Entry = p.mode, p.ready, p.entry
	return p.failed
}

// newFake holds a domain for each case that the tests need.
func newFake() *fakePolicies {
	hold := func(domain string, mode policy.Mode) *heldPolicy {
		ready := Prepare(policyOf("mx."+domain, "*.example.net"))
		return &heldPolicy{mode: mode, ready: ready, entry: &keeper.Entry{Ready: ready}}
	}
	f := &fakePolicies{held: map[string]*heldPolicy{
		"enforce.example":    hold("enforce.example", policy.ModeEnforce),
		"stored.example":     hold("stored.example", policy.ModeEnforce),
		"testing.example":    hold("testing.example", policy.ModeTesting),
		"none.example":       hold("none.example", policy.ModeNone),
		"invalid.example":    hold("invalid.example", 77),
		"unreadable.example": {failed: keeper.ErrUnreadable},
		"wrapped.example":    {failed: fmt.Errorf("wrapped.example: %w", keeper.ErrNoPolicy)},
		"broken.example":     {failed: errors.New("evil words\r\nfrom the network")},
		"old.example":        {mode: policy.ModeEnforce, ready: []byte{readyVersion + 1, 0, 0, 0}},
		"keyword.example":    {mode: policy.ModeEnforce, ready: Prepare(policyOf("hostname")), entry: &keeper.Entry{}},
		"xn--bcher-kva.example": {
			mode: policy.ModeEnforce, ready: Prepare(policyOf("mx.xn--bcher-kva.example")),
		},
	}}
	f.held["stored.example"].entry = nil
	return f
}

// testMaps are the builtin maps and one of each kind that a configuration can make.
func testMaps(t testing.TB) *Table {
	t.Helper()
	table, err := NewTable(append(mta.Builtin(),
		mta.Map{Name: "nosni", Format: mta.FormatPostfix, Enforce: true},
		mta.Map{Name: "strict", Format: mta.FormatPostfix, Servername: true, Enforce: true, Testing: true},
		mta.Map{Name: "rehearsal", Format: mta.FormatPostfix, Servername: true},
	))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func newTestServer(t testing.TB) (*Server, *fakePolicies) {
	t.Helper()
	f := newFake()
	return NewServer(testMaps(t), Options{Policies: f, NextHops: newFakeHops()}), f
}

func ask(s *Server, mapName, key string) string {
	return string(s.AppendReply(context.Background(), nil, []byte(mapName), []byte(key)))
}

func TestReplies(t *testing.T) {
	const (
		enforced = "OK secure match=mx.enforce.example:.example.net servername=hostname"
		stored   = "OK secure match=mx.stored.example:.example.net servername=hostname"
		tested   = "OK secure match=mx.testing.example:.example.net servername=hostname"
		none     = "NOTFOUND "
	)
	tests := []struct{ mapName, key, want string }{
		{"postfix", "enforce.example", enforced},
		{"postfix", "[enforce.example]:587", enforced},
		{"postfix", "ENFORCE.example.", enforced},
		{"postfix", "stored.example", stored},
		{"postfix", "bücher.example", "OK secure match=mx.xn--bcher-kva.example servername=hostname"},
		{"nosni", "enforce.example", "OK secure match=mx.enforce.example:.example.net"},
		{"postfix-tlsrpt", "enforce.example", enforced + " policy_type=sts policy_domain=enforce.example" +
			" mx_host_pattern=mx.enforce.example mx_host_pattern=*.example.net { policy_string = version: STSv1 }" +
			" { policy_string = mode: enforce } { policy_string = mx: mx.enforce.example }" +
			" { policy_string = mx: *.example.net } { policy_string = max_age: 86400 }"},
		{"postfix", "testing.example", none},
		{"postfix-tlsrpt", "testing.example", none},
		{"strict", "testing.example", tested},
		{"strict", "enforce.example", enforced},
		{"strict", "none.example", none},
		{"postfix", "none.example", none},
		{"postfix", "unknown.example", none},
		{"postfix", "wrapped.example", none},
		{"postfix", "", none},
		{"postfix", "localhost", none},
		{"postfix", "unreadable.example", "TEMP stored MTA-STS policy is damaged and could not be fetched again yet; see: sts-tlsmap -explain unreadable.example"},
		{"postfix", "broken.example", "TEMP MTA-STS lookup broke off; see: sts-tlsmap -explain broken.example"},
		{"postfix", "old.example", "TEMP stored MTA-STS policy was written by another version and is not converted yet; see: sts-tlsmap -explain old.example"},
		{"postfix", "keyword.example", "TEMP MTA-STS policy lists no usable MX host name; see: sts-tlsmap -explain keyword.example"},
		{"postfix", "b\xfccher.example", "TEMP next-hop is an internationalized name that cannot be converted to A-labels"},
		{"rehearsal", "enforce.example", none},
		{"rehearsal", "unreadable.example", none},
		{"rehearsal", "b\xfccher.example", none},
		{"rehearsal", "testing.example", none},
	}
	for _, tt := range tests {
		t.Run(tt.mapName+" "+tt.key, func(t *testing.T) {
			s, _ := newTestServer(t)
			for range 3 { // the second and third time from what is kept
				if got := ask(s, tt.mapName, tt.key); got != tt.want {
					t.Fatalf("%q, want %q", got, tt.want)
				}
			}
		})
	}
	t.Run("a mode that is none of the three", func(t *testing.T) {
		s, _ := newTestServer(t)
		if got := ask(s, "postfix", "invalid.example"); !strings.HasPrefix(got, "TEMP ") {
			t.Errorf("%q", got)
		}
	})
}

func TestTheReplyIsAppended(t *testing.T) {
	s, _ := newTestServer(t)
	for _, mapName := range []string{"postfix", "rehearsal", "no-such-map"} {
		for _, key := range []string{"enforce.example", "localhost", "unreadable.example", "keyword.example", "b\xfc.example"} {
			want := "before" + ask(s, mapName, key)
			if got := s.AppendReply(context.Background(), []byte("before"), []byte(mapName), []byte(key)); string(got) != want {
				t.Errorf("map %s, key %q: %q, want %q", mapName, key, got, want)
			}
		}
	}
}

func TestAnUnknownMapIsPERMAndTheKnownOnesAreListed(t *testing.T) {
	s, f := newTestServer(t)
	const known = "; known are: postfix, postfix-tlsrpt, postfix-dane, postfix-dane-tlsrpt, exim, nosni, strict, rehearsal"
	for name, want := range map[string]string{
		"nosuch":                       "PERM unknown map nosuch" + known,
		"":                             "PERM unknown map " + known,
		"Postfix":                      "PERM unknown map Postfix" + known,
		"a\r\nb\x00\xff c":             "PERM unknown map a??b???c" + known,
		strings.Repeat("x", 100):       "PERM unknown map " + strings.Repeat("x", mta.MaxName) + known,
		"postfix-dan":                  "PERM unknown map postfix-dan" + known,
		"postfix\x00":                  "PERM unknown map postfix?" + known,
		strings.Repeat("postfix", 999): "PERM unknown map " + strings.Repeat("postfix", 999)[:mta.MaxName] + known,
	} {
		if got := ask(s, name, "enforce.example"); got != want {
			t.Errorf("map %.80q: %q, want %q", name, got, want)
		}
	}
	if f.asked != nil {
		t.Errorf("the keeper was asked for %q", f.asked)
	}
	if n := s.Stats().UnknownMap; n != 8 {
		t.Errorf("%d lookups of unknown maps counted, want 8", n)
	}
}

// assertNotAsked checks that the key is answered NOTFOUND without a look at
// any policy.
func assertNotAsked(t *testing.T, keys ...string) {
	t.Helper()
	s, f := newTestServer(t)
	f.held["example"] = f.held["enforce.example"]
	for _, mapName := range []string{"postfix", "postfix-tlsrpt", "strict"} {
		for _, key := range keys {
			if got := ask(s, mapName, key); got != "NOTFOUND " {
				t.Errorf("map %s, key %s: %q", mapName, key, got)
			}
		}
	}
	if f.asked != nil {
		t.Errorf("policies were asked for: %q", f.asked)
	}
}

func TestRFC8461_3_4_AddressLiteralsHaveNoPolicy(t *testing.T) {
	assertNotAsked(t, "[192.0.2.1]", "[192.0.2.1]:587", "[IPv6:2001:db8::1]", "[ipv6:2001:db8::1]:25", "[2001:db8::1]", "192.0.2.1", "2001:db8::1")
}

func TestRFC8461_3_4_TheParentDomainsPolicyIsNeverAskedFor(t *testing.T) {
	// Postfix's walk for a.enforce.example, whose parent has a policy.
	assertNotAsked(t, ".enforce.example", ".example")
	s, f := newTestServer(t)
	if got := ask(s, "postfix", "a.enforce.example"); got != "NOTFOUND " {
		t.Errorf("a domain below one with a policy: %q", got)
	}
	if want := []string{"a.enforce.example"}; !slices.Equal(f.asked, want) {
		t.Errorf("asked for %q, want %q", f.asked, want)
	}
}

func TestRFC8461_3_4_ASmartHostIsAskedForByItsName(t *testing.T) {
	s, f := newTestServer(t)
	ask(s, "postfix", "[smart.enforce.example]:587")
	if want := []string{"smart.enforce.example"}; !slices.Equal(f.asked, want) {
		t.Errorf("asked for %q, want %q", f.asked, want)
	}
}

func TestNamesThatCannotHaveAPolicyAreNotAskedFor(t *testing.T) {
	assertNotAsked(t, "", "localhost", "[mailhub]", "a..b", "_dmarc.example", "a b.example", "enforce.example\x00", "enforce.example\n")
}

func TestRFC8461_3_3_WithoutAPolicyItIsAsIfThereWereNoMTASTS(t *testing.T) {
	s, _ := newTestServer(t)
	if got := ask(s, "postfix", "unknown.example"); got != "NOTFOUND " {
		t.Errorf("%q", got)
	}
}

func TestRFC8461_5_TestingIsAppliedOnlyWhereTheMapSaysSo(t *testing.T) {
	s, _ := newTestServer(t)
	if got := ask(s, "postfix", "testing.example"); got != "NOTFOUND " {
		t.Errorf("map postfix: %q", got)
	}
	if got := ask(s, "strict", "testing.example"); !strings.HasPrefix(got, "OK secure ") {
		t.Errorf("testing = enforce: %q", got)
	}
}

func TestAReplyIsKeptOnItsEntryForEachKindOfMap(t *testing.T) {
	s, f := newTestServer(t)
	p := f.held["enforce.example"]
	want := make(map[string]string)
	for _, m := range s.table.Maps() {
		if m.Format == mta.FormatPostfix { // Exim's are made anew each time
			want[m.Name] = ask(s, m.Name, "enforce.example")
		}
	}
	p.ready = nil // from now on only what is kept can answer
	for name, reply := range want {
		if got := ask(s, name, "enforce.example"); got != reply {
			t.Errorf("map %s: %q, want %q", name, got, reply)
		}
	}
	// Another entry is all the invalidation there is.
	p.ready = Prepare(policyOf("new.example"))
	p.entry = &keeper.Entry{}
	if got := ask(s, "nosni", "enforce.example"); got != "OK secure match=new.example" {
		t.Errorf("after the entry was replaced: %q", got)
	}
}

func TestAKeptReplyIsNotOverwrittenByTheNextOne(t *testing.T) {
	s, _ := newTestServer(t)
	room := make([]byte, 0, 1000)
	first := string(s.AppendReply(context.Background(), room, []byte("postfix"), []byte("enforce.example")))
	s.AppendReply(context.Background(), room, []byte("postfix"), []byte("keyword.example"))
	if got := ask(s, "postfix", "enforce.example"); got != first {
		t.Errorf("%q, want %q", got, first)
	}
}

func TestExemptDomainsAreNOTFOUNDAndNotAskedFor(t *testing.T) {
	s, f := newTestServer(t)
	if err := s.SetExempt([]string{"enforce.example", ".stored.example"}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"enforce.example", "[enforce.example]:25", "a.stored.example", "a.b.stored.example"} {
		if got := ask(s, "postfix", key); got != "NOTFOUND " {
			t.Errorf("%s: %q", key, got)
		}
	}
	if f.asked != nil {
		t.Errorf("asked for %q", f.asked)
	}
	if got := ask(s, "postfix", "stored.example"); !strings.HasPrefix(got, "OK ") {
		t.Errorf("stored.example, of which only what is below is exempt: %q", got)
	}
	if !s.IsExempt("enforce.example") || s.IsExempt("stored.example") {
		t.Error("IsExempt says something else")
	}

	if err := s.SetExempt([]string{"stored.example", "not a domain"}); err == nil {
		t.Error("a list with an error is taken")
	}
	if got := ask(s, "postfix", "enforce.example"); got != "NOTFOUND " {
		t.Errorf("after a list that was refused: %q", got)
	}
	if err := s.SetExempt(nil); err != nil {
		t.Fatal(err)
	}
	if got := ask(s, "postfix", "enforce.example"); !strings.HasPrefix(got, "OK ") {
		t.Errorf("after the list was emptied: %q", got)
	}
}

func TestRepliesAreCountedByMapAndKind(t *testing.T) {
	s, _ := newTestServer(t)
	if err := s.SetExempt([]string{"exempt.example"}); err != nil {
		t.Fatal(err)
	}
	for _, mapName := range []string{"postfix", "rehearsal"} {
		for key, n := range map[string]int{
			"enforce.example": 1, "localhost": 1, "none.example": 1, "exempt.example": 3,
			"unreadable.example": 1, "old.example": 1, "b\xfccher.example": 1, "keyword.example": 1,
		} {
			for range n {
				ask(s, mapName, key)
			}
		}
	}
	want := []MapStats{
		{Map: "postfix", OK: 1, NotFound: 2, Exempt: 3, Temp: 4},
		{Map: "postfix-tlsrpt"},
		{Map: "postfix-dane"},
		{Map: "postfix-dane-tlsrpt"},
		{Map: "exim"},
		{Map: "nosni"},
		{Map: "strict"},
		{Map: "rehearsal", NotFound: 2, Exempt: 3, RehearsedOK: 1, RehearsedTemp: 4},
	}
	if got := s.Stats().Maps; !slices.Equal(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
}

func TestLookupsMayComeFromManyGoroutines(t *testing.T) {
	s, f := newTestServer(t)
	f.mute = true
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 200 {
				if err := s.SetExempt([]string{fmt.Sprintf("%d.example", i)}); err != nil {
					t.Error(err)
				}
				for _, m := range []string{"postfix", "postfix-tlsrpt", "nosni", "rehearsal"} {
					ask(s, m, "enforce.example")
					ask(s, m, "STORED.example")
				}
				s.Stats()
			}
		})
	}
	wg.Wait()
	want := "OK secure match=mx.stored.example:.example.net servername=hostname"
	if got := ask(s, "postfix", "stored.example"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if n := s.Stats().Maps[0].OK; n != 8*200*2+1 {
		t.Errorf("%d counted", n)
	}
}
