package tlsmap

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

func TestARehearsalRemembersWhatWouldHaveBeen(t *testing.T) {
	s, _ := newTestServer(t)
	for range 3 {
		ask(s, "rehearsal", "enforce.example")
	}
	ask(s, "rehearsal", "unreadable.example")
	ask(s, "rehearsal", "b\xfccher.example")
	ask(s, "rehearsal", "unknown.example") // nothing would have been otherwise
	ask(s, "postfix", "stored.example")    // no rehearsal

	list := s.Rehearsed("")
	var got []string
	for _, r := range list {
		got = append(got, fmt.Sprintf("%q %s %t %d", r.Domain, r.Map, r.Deferred, r.Count))
	}
	want := `"b\xfccher.example" rehearsal true 1
"unreadable.example" rehearsal true 1
"enforce.example" rehearsal false 3`
	if strings.Join(got, "\n") != want {
		t.Fatalf("%s\nwant:\n%s", strings.Join(got, "\n"), want)
	}
	if would := ask(s, "postfix", "enforce.example"); list[2].Reply != would {
		t.Errorf("reply %q, want %q", list[2].Reply, would)
	}
	if one := s.Rehearsed("unreadable.example"); len(one) != 1 || one[0].Last.Before(one[0].First) {
		t.Errorf("of one domain: %+v", one)
	}
}

func TestWhatWasRehearsedIsBoundedAndOKDoesNotPushOutTEMP(t *testing.T) {
	s, _ := newTestServer(t)
	m := &mta.Map{Name: "rehearsal"}
	s.rehearsed.note(m, []byte("deferred.test"), []byte("TEMP x"), true)
	for i := range 2*maxRehearsed + 1 {
		s.rehearsed.note(m, fmt.Appendf(nil, "d%d.test", i), []byte(strings.Repeat("r", 2*logShown)), false)
	}
	list := s.Rehearsed("")
	if len(list) != maxRehearsed+1 || list[0].Domain != "deferred.test" || len(list[1].Reply) != logShown {
		t.Errorf("%d remembered, the first is %+v", len(list), list[0])
	}
	if lost := s.RehearsalsLost(); lost != (RehearsalsLost{Others: maxRehearsed + 1}) {
		t.Errorf("lost: %+v", lost)
	}
}
