package explain

import (
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

func TestTheDaemonDecidesWhatIsExemptAndTheFileIsComparedWithIt(t *testing.T) {
	listed := []control.ExemptEntry{{Entry: "a.test"}}
	timed := []control.ExemptEntry{{Entry: "a.test", Until: now.Add(time.Hour)}}
	for _, test := range []struct {
		name       string
		file, held []control.ExemptEntry
		reply      string
		next       string
	}{
		{"in the file only", listed, nil, "OK secure", "The configuration file is not in force (a.test: in [exempt] in the file, which is not in force yet: reload): systemctl reload sts-tlsmap. Otherwise there is nothing to do"},
		{"in the file, and for a time", listed, timed, "NOTFOUND", "a.test: in [exempt] in the file, which is not in force yet"},
		{"in the daemon only", nil, listed, "NOTFOUND", "a.test: not in [exempt] in the file any more, but in force until a reload): systemctl reload sts-tlsmap. The domain is exempt"},
		{"another entry", []control.ExemptEntry{{Entry: ".test"}}, listed, "NOTFOUND", ".test: in [exempt] in the file, which is not in force yet: reload; a.test: not in [exempt]"},
		{"in both", listed, listed, "NOTFOUND", "The domain is exempt"},
		{"in neither", nil, nil, "OK secure", "Nothing to do"},
	} {
		w := honest()
		w.exempt, w.held.Exempt, w.held.ExemptBy = test.file, test.held != nil, test.held
		r := w.gather(t, "a.test")
		if !strings.HasPrefix(r.Maps[0].Reply, test.reply) {
			t.Errorf("%s: got %+v, want %s", test.name, r.Maps[0], test.reply)
		}
		if !strings.Contains(r.Next, test.next) || strings.Contains(r.Next, "not in force") != (len(r.Stale) > 0) {
			t.Errorf("%s: got %q and %q, want %q", test.name, r.Next, r.Stale, test.next)
		}
	}

	w := fresh() // the daemon was asked, and holds nothing
	w.exempt = listed
	if r := w.gather(t, "a.test"); !strings.HasPrefix(r.Maps[0].Reply, "OK secure") || len(r.Stale) != 1 {
		t.Errorf("got %+v and %q", r.Maps[0], r.Stale)
	}
	w.asking, w.from = control.ErrNoDaemon, File
	if r := w.gather(t, "a.test"); r.Maps[0].Reply != "NOTFOUND " || len(r.Stale) != 0 {
		t.Errorf("without a daemon: got %+v and %q", r.Maps[0], r.Stale)
	}
}

func TestTheRepliesAreThoseOfTheDaemonsMaps(t *testing.T) {
	w := honest()
	w.runs = append(mta.Builtin(), mta.New("gone"))
	w.maps = append(mta.Builtin(), mta.New("new"))
	w.maps[0].Servername = false
	r := w.gather(t, "a.test")
	for name, want := range map[string]string{
		"postfix": "OK secure match=mx1.a.test servername=hostname", "new": "PERM unknown map", "gone": "OK secure match=mx1.a.test servername=hostname",
	} {
		if m := replyOf(t, r, name); m.Reply != want {
			t.Errorf("got %+v, want %s", m, want)
		}
	}
	for _, want := range []string{
		"map postfix: changed in the file, which is not in force until a restart", "map new: added to the file", "map gone: taken out of the file",
		"systemctl restart sts-tlsmap. Otherwise there is nothing to do",
	} {
		if !strings.Contains(r.Next, want) {
			t.Errorf("got %q, want %q", r.Next, want)
		}
	}
	text := textOf(t, r)
	for _, want := range []string{"the maps are those of the daemon", "\nNot in force\n  map postfix: changed", "the map is another in the file"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}

	w.maps = w.runs
	if r := w.gather(t, "a.test"); len(r.Stale) != 0 || !strings.HasPrefix(r.Next, "Nothing to do") {
		t.Errorf("got %q and %q", r.Stale, r.Next)
	}
	w.runs = []mta.Map{{Name: "x", Format: "of another version"}}
	if r := w.gather(t, "a.test"); len(r.Stale) != 0 || !strings.Contains(textOf(t, r), "the maps are those of the configuration file") {
		t.Errorf("got %q", r.Stale)
	}
}
