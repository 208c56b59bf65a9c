package explain_test

import (
	"strings"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/explain"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

func TestExemptionsOfTheDaemonCountAndDifferencesAreListed(t *testing.T) {
	listed := []control.ExemptEntry{{Entry: "a.test"}}
	timed := []control.ExemptEntry{{Entry: "a.test", Until: now.Add(time.Hour)}}
	for _, test := range []struct {
		name       string
		file, held []control.ExemptEntry
		reply      string
		stale      string
		next       string
	}{
		{"in the file only", listed, nil, "OK secure", "a.test: added to [exempt] in the file, which is not in force until systemctl reload sts-tlsmap", "see above. Otherwise there is nothing to do"},
		{"in the file, and for a time", listed, timed, "NOTFOUND", "a.test: added to [exempt]", "The domain is exempt"},
		{"in the daemon only", nil, listed, "NOTFOUND", "a.test: taken out of [exempt] in the file", "see above. The domain is exempt"},
		{"another entry", []control.ExemptEntry{{Entry: ".test"}}, listed, "NOTFOUND", ".test: added to [exempt] in the file, which is not in force until systemctl reload sts-tlsmap; a.test: taken out of [exempt]", "see above."},
		{"in both", listed, listed, "NOTFOUND", "", "The domain is exempt"},
		{"in neither", nil, nil, "OK secure", "", "Nothing to do"},
	} {
		w := honest()
		w.exempt, w.held.Exempt, w.held.ExemptBy = test.file, test.held != nil, test.held
		r := w.gather(t, "a.test")
		if !strings.HasPrefix(r.Maps[0].Reply, test.reply) {
			t.Errorf("%s: got %+v, want %s", test.name, r.Maps[0], test.reply)
		}
		if !strings.Contains(r.Next, test.next) || strings.Contains(r.Next, "see above") != (len(r.Stale) > 0) ||
			!strings.Contains(strings.Join(r.Stale, "; "), test.stale) {
			t.Errorf("%s: got %q and %q, want %q and %q", test.name, r.Next, r.Stale, test.next, test.stale)
		}
	}

	w := fresh() // the daemon was asked, and holds nothing
	w.exempt = listed
	if r := w.gather(t, "a.test"); !strings.HasPrefix(r.Maps[0].Reply, "OK secure") || len(r.Stale) != 1 {
		t.Errorf("got %+v and %q", r.Maps[0], r.Stale)
	}
	w.asking, w.from = control.ErrNoDaemon, explain.File
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
	shows(t, textOf(t, r), "\nNot in force\n  map postfix: changed in the file, which is not in force until systemctl restart sts-tlsmap\n",
		"  map new: added to the file", "  map gone: taken out of the file", "see above. Otherwise there is nothing to do", "\nWhat the maps reply\n")

	w.maps = w.runs
	if r := w.gather(t, "a.test"); len(r.Stale) != 0 || !strings.HasPrefix(r.Next, "Nothing to do") {
		t.Errorf("got %q and %q", r.Stale, r.Next)
	}
	w.runs = []mta.Map{{Name: "x", Format: "of another version"}}
	r = w.gather(t, "a.test")
	shows(t, textOf(t, r), "\nWhat the maps of the configuration file reply\n")
	if len(r.Stale) != 0 {
		t.Errorf("got %q", r.Stale)
	}
}
