// Package recipe is the words of -recipe: what to write into an MTA's
// configuration so that it asks the daemon, and which of its settings would
// undo the protection. It reads the MTA's configuration and changes nothing.
//
// What is recommended is a pure function of what was read (Postfix, Exim);
// reading it is another function (ReadPostconf, ReadExim).
package recipe

import (
	"fmt"
	"strings"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
)

// A Daemon is the part of the daemon's configuration that the MTA meets.
type Daemon struct {
	// Listen are the endpoints in Postfix's syntax: "inet:127.0.0.1:8461",
	// "unix:/path".
	Listen        []string
	Maps          []mta.Map     // those that the daemon answers
	LookupTimeout time.Duration // of one lookup
}

// A Recipe is what to write, and what to look at.
type Recipe struct {
	Title    string
	Settings []Setting
	Remarks
}

// Remarks are what to know beside what to write.
type Remarks struct {
	Warnings []string // what undoes the protection, and what to do about it
	Notes    []string
}

func (r *Remarks) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

func (r *Remarks) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// write writes the remarks as comments, an empty line before each.
func (r *Remarks) write(b *strings.Builder) {
	for _, w := range r.Warnings {
		b.WriteByte('\n')
		comment(b, "WARNING: ", w)
	}
	for _, n := range r.Notes {
		b.WriteByte('\n')
		comment(b, "Note: ", n)
	}
}

// A Setting is one line of main.cf.
type Setting struct {
	Name, Value string
	Why         string // empty if it is plain
	InEffect    bool   // it is set like that already
}

// width is where comments are wrapped.
const width = 76

// String renders the recipe as text that can go into main.cf as it is: all
// that is no setting is a comment.
func (r Recipe) String() string {
	var b strings.Builder
	comment(&b, "", r.Title)
	for _, s := range r.Settings {
		b.WriteByte('\n')
		if s.Why != "" {
			comment(&b, "", s.Why)
		}
		if s.InEffect {
			comment(&b, "", "(already so)")
		}
		b.WriteString(oneLine(s.Name + " = " + s.Value))
		b.WriteByte('\n')
	}
	r.write(&b)
	return b.String()
}

// comment writes text as lines of a comment.
func comment(b *strings.Builder, label, text string) {
	line := "# " + label
	empty := true
	for _, word := range strings.Fields(oneLine(text)) {
		if !empty && len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line, empty = "#   ", true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	b.WriteString(line + "\n")
}

// oneLine keeps what was read from files from being more than a part of its
// line, or from talking to a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || 0x7f <= r && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
