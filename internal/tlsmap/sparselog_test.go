package tlsmap

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

func TestARehearsalLogsWhatItWouldHaveRepliedOnceAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := newFake()
		s := NewServer(testMaps(t), Options{Policies: f, Log: slog.New(slog.NewTextHandler(&log, nil))})
		lines := func() int { return strings.Count(log.String(), "\n") }
		for range 10 {
			ask(s, "rehearsal", "enforce.example")
			ask(s, "rehearsal", "none.example")
			ask(s, "postfix", "enforce.example")
		}
		if lines() != 1 {
			t.Fatalf("%d lines, want 1:\n%s", lines(), &log)
		}
		for _, want := range []string{"map=rehearsal", "key=enforce.example", `reply="OK secure match=mx.enforce.example:.example.net servername=hostname"`} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("no %s in %s", want, &log)
			}
		}
		time.Sleep(logAgain)
		ask(s, "rehearsal", "enforce.example")
		if lines() != 2 {
			t.Errorf("%d lines an hour later, want 2", lines())
		}

		// Many domains at once are cut off, and the next line says so.
		time.Sleep(logAgain)
		for i := range 10 * lineBurst {
			ask(s, "rehearsal", fmt.Sprintf("%d.b\xfccher.example", i))
		}
		if n := lines() - 2; n < lineBurst/2 || n > lineBurst {
			t.Errorf("%d lines at once, the limit is %d", n, lineBurst)
		}
		time.Sleep(time.Minute)
		ask(s, "rehearsal", "unreadable.example")
		if !strings.Contains(log.String(), "not_logged=") {
			t.Errorf("what was left out is not said:\n%s", &log)
		}
	})
}

func TestTheLogShowsLongKeysCutOff(t *testing.T) {
	var log bytes.Buffer
	s := NewServer(testMaps(t), Options{Policies: newFake(), Log: slog.New(slog.NewTextHandler(&log, nil))})
	ask(s, "rehearsal", strings.Repeat("x", 10_000)+"\xff")
	if n := log.Len(); n == 0 || n > 2000 {
		t.Errorf("a line of %d bytes", n)
	}
}

func TestHostsInAnotherOrderAreNoNewRehearsal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s, _ := eximServer(t, mxSet("10 a.example.com", "10 b.example.com", "10 c.example.com"), nil, "*.example.com")
		s.rehearsing.init(slog.New(slog.NewTextHandler(&log, nil)), slog.LevelInfo, "rehearsal")
		m := &mta.Map{Name: "rehearsal", Format: mta.FormatExim}
		orders := map[string]bool{}
		for range 100 {
			reply := ask(s, "exim", "example.com")
			orders[reply] = true
			s.rehearse(m, []byte("example.com"), []byte(reply), false, &lookup{domain: []byte("example.com")})
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || len(orders) < 2 {
			t.Errorf("%d lines about %d orders:\n%s", n, len(orders), &log)
		}
	})
}

func TestALineForWhichThereWasNoRoomIsWrittenTheNextTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sparseLog
		s.init(nil, slog.LevelWarn, "deferred")
		for i := range 2 * lineBurst {
			s.due("postfix", fmt.Appendf(nil, "%d.example", i), nil)
		}
		if s.due("postfix", []byte("example.com"), nil) {
			t.Fatal("there is room for more than the burst")
		}
		if n := s.dropped.Load(); n < lineBurst {
			t.Errorf("%d lines were left out", n)
		}
		time.Sleep(time.Second)
		if !s.due("postfix", []byte("example.com"), nil) {
			t.Error("a second later it is not written")
		}
		if s.due("postfix", []byte("example.com"), nil) {
			t.Error("it is written twice")
		}
	})
}
