//go:build e2e

package tlsrpt

import (
	"testing"
)

// Postfix 3.10 and 3.11, with the map postfix-tlsrpt and with postfix-dane-tlsrpt.
func TestPostfixTrixie(t *testing.T)     { withoutDANE(t, "postfix-trixie") }
func TestPostfixTrixieDANE(t *testing.T) { withDANE(t, "postfix-trixie") }
func TestPostfixForky(t *testing.T)      { withoutDANE(t, "postfix-forky") }
func TestPostfixForkyDANE(t *testing.T)  { withDANE(t, "postfix-forky") }

func withDANE(t *testing.T, root string) {
	all := append(rows[:len(rows):len(rows)], daneRows...)
	w, domains := newWorld(t, root, true, all)
	w.play(t, all, domains)
}

func withoutDANE(t *testing.T, root string) {
	all := append(rows[:len(rows):len(rows)], noDANERows...)
	w, domains := newWorld(t, root, false, all)
	w.play(t, all, domains)
	for _, s := range stories {
		t.Run(s.what, func(t *testing.T) { s.tell(t, w) })
	}
}

var stories = []struct {
	what string
	tell func(*testing.T, *world)
}{
	{"resumed TLS sessions", resumes},
	{"messages over one TLS session", reuses},
	{"mail does not wait for the daemon's socket", staysOutOfTheWay},
	{"kill -9 counts nothing twice, and loses what came after the last batch", survivesKills},
}
