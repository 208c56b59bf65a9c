package reader_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/reader"
	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt/report"
)

func TestReportsOfLargeSendersAreReadInEachForm(t *testing.T) {
	for _, s := range corpus(t) {
		forms := map[string]string{
			"JSON": s.json, "gzip": compress(t, s.json), "mail": s.mail, "mail with LF": strings.ReplaceAll(s.mail, "\r\n", "\n"),
			"mbox":      "From a@b Mon Nov 30 08:00:00 2026\n" + s.mail + "\n",
			"forwarded": "Content-Type: multipart/mixed; boundary=f\n\n--f\nContent-Type: text/plain\n\nFYI\n--f\nContent-Type: message/rfc822\n\n" + s.mail + "\n--f--\n",
			"the attachment alone": "MIME-Version: 1.0\nContent-Type: application/tlsrpt+gzip\nContent-Transfer-Encoding: base64\n\n" +
				base64Lines(compress(t, s.json)),
		}
		for form, text := range forms {
			r := read(text)
			if len(r.problems) > 0 || len(r.reports) != 1 || r.Inputs != 1 {
				t.Errorf("%s as %s: %d reports of %d, problems %q", s.name, form, len(r.reports), r.Inputs, r.problems)
				continue
			}
			if r.reports[0].Day() != s.day || r.totals.Failed != s.failed || r.totals.Sessions != s.sessions {
				t.Errorf("%s as %s: day %s, %d of %d failed; want %+v", s.name, form, r.reports[0].Day(), r.totals.Failed, r.totals.Sessions, s)
			}
			if got := r.text(t); s.row != "" && !strings.Contains(got, s.row+"\n") || (s.row == "") == strings.Contains(got, "REASON") {
				t.Errorf("%s as %s: want %q in\n%s", s.name, form, s.row, got)
			}
		}
	}
}

func TestOurOwnReportIsReadBackEqual(t *testing.T) {
	text, mail := ourMail(t)
	var want, got report.Report
	if err := json.Unmarshal([]byte(text), &want); err != nil {
		t.Fatal(err)
	}
	r := read(mail)
	if len(r.reports) != 1 {
		t.Fatalf("problems %q", r.problems)
	}
	again, err := json.Marshal(r.reports[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, got, want)
	}
	if r.places[0] != "f: part 2" {
		t.Errorf("it is in %s", r.places[0])
	}
}

func TestTheTablesHaveTheWorstFirstAndTheDaysWithTheLatestFirst(t *testing.T) {
	r := newReading()
	for _, s := range corpus(t) {
		r.Stream(s.name, strings.NewReader(s.mail))
	}
	const want = `FAILED DOMAIN POLICY RESULT HOST SENDER LAST REASON
4 mx.example.com tlsa validation-failure mx.example.com Example Ltd 2026-11-29 dane-no-match
3 example.com sts sts-policy-fetch-error - Microsoft Corporation 2026-11-28 -
2 example.com sts certificate-host-mismatch mx1.example.com Google Inc. 2026-11-29 -
1 example.com STS certificate-expired 192.0.2.2 Yahoo 2026-11-29 expired 2026-11-01

FAILED SESSIONS DOMAIN POLICY SENDER
4 10 mx.example.com tlsa Example Ltd
3 3 example.com sts Microsoft Corporation
2 9 example.com sts Google Inc.
1 13 example.com STS Yahoo
0 30 example.com sts Example Ltd
0 5 example.com sts Mail.ru
0 1 - no-policy-found sonne.test

FAILED SESSIONS DAY
7 68 2026-11-29
3 3 2026-11-28

`
	if got := r.text(t); got != want || r.Reports != 6 || len(r.problems) > 0 {
		t.Errorf("%d reports, problems %q\ngot\n%s\nwant\n%s", r.Reports, r.problems, got, want)
	}
}

// mbox returns messages in an mbox.
func mbox(messages ...string) string {
	var b strings.Builder
	for _, m := range messages {
		b.WriteString("From noreply@sender.test Mon Nov 30 08:00:00 2026\n" + strings.ReplaceAll(m, "\r\n", "\n") + "\n\n")
	}
	return b.String()
}

func TestADuplicateIsCountedOnce(t *testing.T) {
	google := corpus(t)[0]
	r := newReading()
	r.Stream("forged", strings.NewReader(`{"organization-name":"Google Inc.","report-id":"2026-11-29T00:00:00Z_example.com","policies":[]}`))
	r.Stream("a", strings.NewReader(mbox(google.mail, google.mail)))
	r.Stream("b", strings.NewReader(google.json))
	r.Stream("c", strings.NewReader(strings.Replace(google.json, "Google", "Poodle", 1)))
	r.Stream("d", strings.NewReader(strings.Replace(google.json, `2026-11-29T00:00:00Z_example.com`, "", 1)))
	if r.Reports != 4 || r.Duplicates != 2 || r.Inputs != 6 || r.totals.Failed != 6 {
		t.Errorf("%d reports, %d duplicates, %d inputs, %d failed", r.Reports, r.Duplicates, r.Inputs, r.totals.Failed)
	}
}

func TestFilesAreUTF8WithOrWithoutAByteOrderMark(t *testing.T) {
	google := corpus(t)[0]
	numbered := strings.Replace(google.json, `"report-id":"2026-11-29T00:00:00Z_example.com"`, `"report-id":20261129`, 1)
	r := newReading()
	for _, text := range []string{google.json, google.mail, mbox(google.mail), numbered} {
		r.Stream("f", strings.NewReader("\ufeff"+text))
	}
	if r.Reports != 2 || r.Duplicates != 2 || r.Inputs != 4 || len(r.problems) > 0 {
		t.Errorf("%d reports, %d duplicates, %d inputs, %q", r.Reports, r.Duplicates, r.Inputs, r.problems)
	}
	for _, text := range []string{"\xff\xfe{\x00}\x00", "\xfe\xff\x00{\x00}"} {
		r := newReading()
		if r.Stream("f", strings.NewReader(text)); len(r.problems) != 1 || !strings.Contains(r.problems[0], "UTF-16") {
			t.Errorf("%q: %q", text, r.problems)
		}
	}
}

// In an mbox, the messages before and after a broken one are read, and the place is told.
func TestABrokenReportIsToldWithItsPlaceAndTheRestIsRead(t *testing.T) {
	c := corpus(t)
	google := c[0].mail
	for name, tt := range map[string]struct{ broken, place, words string }{
		"base64":            {strings.Replace(google, "H4sI", "H4s!", 1), "f: message 2: part 2: ", "illegal base64"},
		"gzip":              {mail(multipartReport, "Content-Type: application/tlsrpt+gzip\nContent-Transfer-Encoding: base64", base64Lines(compress(t, googleJSON)[:200])), "f: message 2: part 2: ", "unexpected EOF"},
		"JSON":              {mail(multipartReport, "Content-Type: application/tlsrpt+json", googleJSON[:300]), "f: message 2: part 2: ", "unexpected end of JSON"},
		"a count":           {mail(multipartReport, "Content-Type: application/tlsrpt+json", strings.Replace(googleJSON, `count":2`, `count":{}`, 1)), "f: message 2: part 2: ", "json: "},
		"UTF-16":            {mail(multipartReport, "Content-Type: application/tlsrpt+json\nContent-Transfer-Encoding: base64", base64Lines("\xff\xfe{\x00}\x00")), "f: message 2: part 2: ", "neither JSON nor gzip"},
		"other JSON":        {mail(multipartReport, "Content-Type: application/tlsrpt+json", `{"a":1}`), "f: message 2: part 2: ", "neither JSON nor gzip"},
		"encoding":          {strings.Replace(google, "Encoding: base64", "Encoding: x-uu", 1), "f: message 2: part 2: ", "neither JSON nor gzip"},
		"no boundary":       {strings.ReplaceAll(google, "--0000b", "--0000c"), "f: message 2: ", "a broken message: "},
		"the end":           {google[:len(google)-8], "f: message 2: ", "EOF"},
		"a header":          {strings.Replace(google, "MIME-Version:", "MIME-Version", 1), "f: message 2: ", "malformed MIME header"},
		"a message in it":   {mail(`multipart/mixed; boundary="0000b"`, "Content-Type: message/rfc822", strings.NewReplacer("H4sI", "H4s!", "0000b", "1111b").Replace(google)), "f: message 2: part 2: part 2: ", "illegal base64"},
		"a part in a part":  {mail(`multipart/mixed; boundary="0000b"`, "Content-Type: multipart/mixed; boundary=i", "--i\r\nContent-Type: application/tlsrpt+json\r\n\r\n{\r\n--i--"), "f: message 2: part 2: part 1: ", "unexpected end"},
		"broken inner part": {mail(multipartReport, "Content-Type: multipart/mixed; boundary=i", "x"), "f: message 2: ", "a broken message: "},
	} {
		t.Run(name, func(t *testing.T) {
			r := read(mbox(c[1].mail, tt.broken, c[2].mail))
			if len(r.problems) == 0 || !strings.HasPrefix(r.problems[0], tt.place) || !strings.Contains(r.problems[0], tt.words) {
				t.Errorf("problems %q; want %q", r.problems, tt.place+tt.words)
			}
			if r.Reports != 2 || r.Inputs != 3 || r.reports[0].Organization != "Microsoft Corporation" || r.reports[1].Organization != "Mail.ru" {
				t.Errorf("%d reports in %d messages: %q", r.Reports, r.Inputs, r.places)
			}
		})
	}
}

func TestMailWithoutAReportIsNoProblem(t *testing.T) {
	for name, text := range map[string]string{
		"a text": "Subject: hello\n\n{ is a brace\n",
		"DMARC": strings.ReplaceAll(mail("multipart/mixed; boundary=0000b", "Content-Type: application/gzip; name=\"a!b!1!2.xml.gz\"\nContent-Transfer-Encoding: base64",
			base64Lines(compress(t, "<?xml version=\"1.0\"?><feedback/>"))), "TLS-Report", "X"),
		"broken spam":          "Content-Type: multipart/mixed; boundary=x\n\n--y\n",
		"a broken picture":     "Content-Type: image/png; name=a.png\nContent-Transfer-Encoding: base64\n\n!!!\n",
		"no mail":              "#!/bin/sh\necho\n",
		"empty":                "",
		"zeroes":               strings.Repeat("\x00", 5000),
		"JSON of another kind": `{"name": "sts", "policies": null}`,
	} {
		if r := read(text); r.Reports > 0 || len(r.problems) > 0 || r.Inputs != 1 {
			t.Errorf("%s: %d reports in %d inputs, problems %q", name, r.Reports, r.Inputs, r.problems)
		}
	}
}

func TestFoldersMaildirsAndLinksAreReadWithoutWaiting(t *testing.T) {
	c := corpus(t)
	dir := t.TempDir()
	write := func(text string, path ...string) {
		file := filepath.Join(append([]string{dir}, path...)...)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(c[0].mail, "Maildir/cur/1764489600.1:2,S")
	write(c[1].mail, "Maildir/new/1764489600.2")
	write(c[2].mail, "Maildir/tmp/1764489600.3")
	write(c[2].mail, "Maildir/.Trash/cur/1764489600.4")
	write("3 V1 N1\n", "Maildir/dovecot-uidlist")
	write(compress(t, c[3].json), "a", "b", "c.json.gz")
	write("{", "a", "broken.json")
	for _, pipe := range []string{"fifo", "Maildir/cur/fifo"} {
		if err := syscall.Mkfifo(filepath.Join(dir, pipe), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"a/loop": "..", "a/self": "self", "zero": "/dev/zero", "linked": "a", "file": "a/b/c.json.gz"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	r := newReading()
	r.Read(dir)
	slices.Sort(r.problems)
	want := []string{dir + "/a/broken.json: unexpected end of JSON input", dir + "/a/self: too many levels of symbolic links"}
	if r.Reports != 3 || r.Duplicates != 1 || r.Inputs != 6 || !slices.Equal(r.problems, want) {
		t.Errorf("%d reports, %d duplicates, %d inputs in %q\nproblems %q", r.Reports, r.Duplicates, r.Inputs, r.places, r.problems)
	}
	r = newReading()
	r.Read(filepath.Join(dir, "linked"))
	if r.Reports != 1 {
		t.Errorf("in a folder named by a link: %d reports, problems %q", r.Reports, r.problems)
	}
	r = newReading()
	r.Read(filepath.Join(dir, "nowhere"))
	if len(r.problems) != 1 || r.problems[0] != dir+"/nowhere: no such file or directory" {
		t.Errorf("problems %q", r.problems)
	}
}

func TestStrangersWordsCannotDriveATerminal(t *testing.T) {
	evil := "\\u001b[2J\\u202e\\t\\n" + strings.Repeat("x", 5000)
	text := strings.NewReplacer("Google Inc.", evil+"1", "certificate-host-mismatch", evil+"2", `"sts"`, `"`+evil+`3"`, `"mx1.example.com"`, `"`+evil+`4"`,
		`"example.com"`, `"`+evil+`5"`, "2026-11-29T", evil, `"failed-session-count"`, `"failure-reason-code":"`+evil+`6","failed-session-count"`).Replace(googleJSON)
	r := read(text)
	if r.Reports != 1 {
		t.Fatalf("problems %q", r.problems)
	}
	var b strings.Builder
	if err := r.totals.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); strings.ContainsAny(got, "\x1b\u202e\t") || strings.Count(got, "\n") != 9 || !strings.Contains(got, `\x1b[2j\u{202e}\x09\x0axxx`) || len(got) > 6000 {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}

func TestRowsAndCountsAreBounded(t *testing.T) {
	var totals reader.Totals
	report := &reader.Report{Policies: make([]reader.Result, 1)}
	p := &report.Policies[0]
	p.Summary.Successful = "-5"
	p.Details = reader.List[reader.Detail]{{Sessions: "1e300"}}
	for i := range 25_000 {
		p.Policy.Domain = fmt.Sprint(i, ".example")
		totals.Add(report)
	}
	if totals.Failed != 25_000e9 || totals.Sessions != totals.Failed {
		t.Errorf("%d of %d failed", totals.Failed, totals.Sessions)
	}
	var b strings.Builder
	if err := totals.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), ".example "); n != 40_000 || strings.Count(b.String(), "(others)") != 2 || !strings.Contains(b.String(), "\n5000000000000 ") {
		t.Errorf("%d rows:\n%.500s", n, b.String())
	}
}
