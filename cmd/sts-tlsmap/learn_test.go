package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheBarOfALearningSaysHowFarItIsAndIsForTerminalsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := progress{w: &out, shown: true}
		p.step() // before it begins, there is none
		p.begin(4)
		time.Sleep(2 * time.Second)
		p.step()
		if want := "\r\x1b[K[#######.......................] 1 of 4, 6s left"; out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
		p.step() // too soon to be drawn
		if strings.Contains(out.String(), "2 of 4") {
			t.Errorf("it is drawn for each: %q", out.String())
		}
		p.step()
		p.step()
		p.end()
		if !strings.HasSuffix(out.String(), "] 4 of 4, 0s left\n") {
			t.Errorf("%q", out.String())
		}
		out.Reset()
		p = progress{w: &out}
		p.begin(1)
		p.step()
		p.clear()
		p.end()
		if out.Len() > 0 {
			t.Errorf("without a terminal: %q", out.String())
		}
	})
}
