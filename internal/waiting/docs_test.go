package waiting_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/waiting"
)

var update = flag.Bool("update", false, "write the tables of docs/mail-waits.md")

const page = "../../docs/mail-waits.md"

// logged are messages of Postfix that are only in its log, and the names of their causes.
var logged = [][2]string{
	{"self-signed certificate", "certificate"},
	{"certificate has expired", "certificate"},
	{"certificate not yet valid", "certificate"},
	{"hostname mismatch", "certificate"},
	{"untrusted issuer", "certificate"},
	{"does not match STS MX pattern", "unlisted"},
	{"policy table lookup error", "no-policy"},
	{"no matching DANE TLSA records", "dane"},
}

// tables are the sections of the page that the code has, too.
func tables() string {
	var b strings.Builder
	b.WriteString("## The messages\n\nPart of the message is enough. ID is the queue id of a message, and\nMTA is postfix, exim or sendmail.\n\n| message | from | cause |\n|---|---|---|\n")
	var causes []*waiting.Cause
	row := func(text, from, cause string) {
		fmt.Fprintf(&b, "| `%s` | %s | [%s](#%[3]s) |\n", strings.TrimSpace(text), from, cause)
	}
	for i, k := range waiting.Table {
		from := k.MTA
		if k.MTA == waiting.Daemon {
			from += ": Exim's queue, Postfix's log"
		}
		row(k.Text, from, k.Cause.Name)
		if k.MTA == waiting.Postfix && waiting.Table[i+1].MTA != waiting.Postfix {
			for _, l := range logged {
				row(l[0], "Postfix, log", l[1])
			}
		}
		if !slices.Contains(causes, k.Cause) {
			causes = append(causes, k.Cause)
		}
	}
	b.WriteString("\n## The causes\n")
	for _, c := range causes {
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n", c.Name, c.Words)
		for _, s := range c.Steps {
			command := s.Command
			if command == "" {
				command = "postqueue -i ID, exim -M ID, or sendmail -v -qIID"
			}
			fmt.Fprintf(&b, "    %-36s # %s\n", command, strings.ToLower(s.For[:1])+s.For[1:])
		}
	}
	return b.String()
}

func TestThePageHasEachMessageWithItsCauseAndCommands(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	start, end := strings.Index(string(text), "## The messages\n"), len(text)
	if start < 0 {
		t.Fatal("the page has no section of the messages")
	}
	if *update {
		if err := os.WriteFile(page, append(text[:start:start], tables()...), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, want := string(text[start:end]), tables(); got != want {
		t.Errorf("the page differs from the table in messages.go: go test ./internal/waiting -run Page -update\ngot:\n%s\nwant:\n%s", got, want)
	}
}

func TestTheDaemonsReasonsInTheTableAreThoseOfTheProgram(t *testing.T) {
	var source strings.Builder
	files, err := filepath.Glob("../tlsmap/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, "../../packaging/exim/routers") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(text)
	}
	for _, k := range waiting.Table {
		if (k.MTA == waiting.Daemon || k.Text == "sts-tlsmap does not answer") && !strings.Contains(source.String(), k.Text) {
			t.Errorf("%q is no text of package tlsmap or of the shipped routers", k.Text)
		}
	}
}
