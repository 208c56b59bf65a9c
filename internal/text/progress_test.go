package text_test

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
)

func TestAProgressBarSaysHowFarItIsAndIsForTerminalsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := text.Progress{W: &out, Shown: true}
		p.Step() // before it begins, there is none
		p.Begin(4)
		time.Sleep(2 * time.Second)
		p.Step()
		if want := "\r\x1b[K[#######.......................] 1 of 4, 6s left"; out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
		p.Step() // too soon to be drawn
		if strings.Contains(out.String(), "2 of 4") {
			t.Errorf("it is drawn for each: %q", out.String())
		}
		p.Step()
		p.Step()
		p.End()
		if !strings.HasSuffix(out.String(), "] 4 of 4, 0s left\n") {
			t.Errorf("%q", out.String())
		}
		// In a file whose end is known, and where it is not.
		out.Reset()
		p = text.Progress{W: &out, Shown: true}
		p.Begin(1000)
		time.Sleep(time.Second)
		p.At(500, "7 policies")
		if want := "\r\x1b[K[###############...............] 7 policies, 1s left"; out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
		out.Reset()
		p.Begin(0)
		time.Sleep(time.Second)
		p.At(500, "7 policies")
		if want := "\r\x1b[K7 policies"; out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
		out.Reset()
		p = text.Progress{W: &out}
		p.Begin(1)
		p.Step()
		p.Clear()
		p.End()
		if out.Len() > 0 {
			t.Errorf("without a terminal: %q", out.String())
		}
	})
}
