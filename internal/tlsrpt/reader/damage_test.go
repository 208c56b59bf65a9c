package reader_test

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// Of a message that is cut off, the report is read as a whole or not at all. Either the
// damage is told, or the header is gone that says that there is a report.
func TestAReportThatIsCutOffAnywhereIsWholeOrTold(t *testing.T) {
	for _, s := range corpus(t) {
		whole := read(s.mail).reports[0]
		header := strings.Index(s.mail, "\r\n\r\n")
		for n := range len(s.mail) {
			r := read(s.mail[:n])
			switch {
			case len(r.reports) > 0 && !reflect.DeepEqual(r.reports[0], whole):
				t.Fatalf("%s, %d bytes: got %+v", s.name, n, r.reports[0])
			case len(r.reports) == 0 && len(r.problems) == 0 && n > header+4 && s.name != "yahoo": // whose type says nothing
				t.Fatalf("%s, %d of %d bytes: nothing is told", s.name, n, len(s.mail))
			}
		}
	}
}

func TestAFlippedBitInACompressedReportIsToldOrHarmless(t *testing.T) {
	for _, s := range corpus(t) {
		text, whole := compress(t, s.json), read(s.json).reports[0]
		for i := range text {
			for bit := range 8 {
				damaged := []byte(text)
				damaged[i] ^= 1 << bit
				r := read(string(damaged))
				if len(r.reports) > 0 && !reflect.DeepEqual(r.reports[0], whole) {
					t.Fatalf("%s, byte %d, bit %d: got %+v", s.name, i, bit, r.reports[0])
				}
				if len(r.reports) == 0 && len(r.problems) == 0 && i > 1 { // else it no longer begins as gzip does
					t.Fatalf("%s, byte %d, bit %d: nothing is told", s.name, i, bit)
				}
			}
		}
	}
}

func TestAFlippedBitInAMessageSparesTheNextMessage(t *testing.T) {
	c := corpus(t)
	for i, s := range c {
		next := c[(i+1)%len(c)]
		for i := 0; i < len(s.mail); i += 3 {
			damaged := []byte(s.mail)
			damaged[i] ^= 1 << (i % 8)
			r := read(mbox(string(damaged), next.mail))
			if r.Inputs != 2 || r.Reports == 0 || r.places[r.Reports-1] != "f: message 2: part 2" {
				t.Fatalf("%s, byte %d: %d inputs, %q, problems %q", s.name, i, r.Inputs, r.places, r.problems)
			}
		}
	}
}

// An endless stream repeats a text for ever.
type endless struct {
	head, text string
	read       int
}

func (e *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		from := e.head
		if e.read >= len(e.head) {
			from = e.text[(e.read-len(e.head))%len(e.text):]
		} else {
			from = from[e.read:]
		}
		c := copy(p[n:], from)
		n, e.read = n+c, e.read+c
	}
	return n, nil
}

// mostAllocated is what reading may allocate in all, an upper bound of its memory. It is
// some ten times maxJSON, since a buffer that grows counts with each of its sizes.
const mostAllocated = 400 << 20

func TestBombsAndEndlessInputAreBounded(t *testing.T) {
	head, _, _ := strings.Cut(mail(multipartReport, "", ""), "\r\n--0000b")
	blanks := strings.Repeat(compress(t, strings.Repeat(" ", 1<<20)), 64) // gzip can be concatenated
	const part = "\n--0000b\nContent-Type: application/tlsrpt+json\n"
	for name, tt := range map[string]struct {
		in    io.Reader
		words string // of the problem
	}{
		"a gzip bomb":            {strings.NewReader(compress(t, `{"policies":[`) + blanks), "more than 32 MiB of JSON"},
		"a gzip bomb of blanks":  {strings.NewReader(mail(multipartReport, "Content-Type: application/tlsrpt+gzip\nContent-Transfer-Encoding: base64", base64Lines(blanks))), "more than 32 MiB of JSON"},
		"bombs in many parts":    {strings.NewReader(head + strings.Repeat("\r\n--0000b\r\nContent-Type: application/gzip\r\nContent-Transfer-Encoding: base64\r\n\r\n"+base64Lines(compress(t, strings.Repeat(" ", 31<<20))), 90)), "more than 32 MiB of JSON"},
		"endless JSON":           {&endless{head: `{"policies":[`, text: `{"policy":{"policy-type":"sts"}},`}, "more than 32 MiB of JSON"},
		"one endless string":     {&endless{head: `{"report-id":"`, text: strings.Repeat("x", 4096)}, "more than 32 MiB of JSON"},
		"a million details":      {strings.NewReader(`{"policies":[{"failure-details":[{}` + strings.Repeat(",{}", 1_000_001) + "]}]}"), "more than 125000 objects"},
		"a million strings":      {strings.NewReader(`{"policies":[{"policy":{"policy-string":[""` + strings.Repeat(`,""`, 1_000_001) + "]}}]}"), "1000000 commas"},
		"nested arrays":          {strings.NewReader(`{"policies":` + strings.Repeat("[", 20<<20)), "exceeded max depth"},
		"an endless header":      {&endless{text: "A:b\n"}, "of its header"},
		"an endless header line": {&endless{head: "A: ", text: strings.Repeat("b", 4096)}, "of its header"},
		"a part's header":        {&endless{head: head + part, text: "A:b\n"}, "message too large"},
		"an endless attachment":  {&endless{head: head + part + "\n{", text: strings.Repeat(" ", 4096)}, "more than 32 MiB"},
		"endless parts":          {&endless{head: head, text: "\n--0000b\n\n"}, "more than 100 parts"},
		"parts in parts":         {strings.NewReader(nested("multipart/mixed", 5000)), "nested more than 10 deep"},
		"messages in messages":   {strings.NewReader("TLS-Report-Domain: a\n" + strings.Repeat("Content-Type: message/rfc822; x=tlsrpt\n\n", 100_000)), "nested more than 10 deep"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			r := newReading()
			runtime.ReadMemStats(&before)
			r.Stream("f", tt.in)
			runtime.ReadMemStats(&after)
			if len(r.problems) == 0 || len(r.problems) > 3 || !strings.Contains(strings.Join(r.problems, "\n"), tt.words) || r.Reports > 0 {
				t.Errorf("%d reports, %d problems: %.300q; want %q", r.Reports, len(r.problems), r.problems, tt.words)
			}
			n := after.TotalAlloc - before.TotalAlloc
			t.Logf("%d MiB allocated", n>>20)
			if n > mostAllocated {
				t.Errorf("%d MiB allocated", n>>20)
			}
		})
	}
}

// nested returns a message with so many parts in parts.
func nested(media string, depth int) string {
	var b strings.Builder
	b.WriteString("TLS-Report-Domain: a\n")
	for i := range depth {
		fmt.Fprintf(&b, "Content-Type: %s; boundary=b%d\n\n--b%d\n", media, i, i)
	}
	return b.String()
}

func TestAReportOfTwentyThousandDetailsIsRead(t *testing.T) {
	details := make([]string, 20_000)
	for i := range details {
		details[i] = fmt.Sprintf(`{"result-type":"certificate-expired","sending-mta-ip":"2001:db8::%x","receiving-ip":"192.0.2.1","receiving-mx-hostname":"mx.example.com","failed-session-count":1}`, i)
	}
	r := read(strings.Replace(googleJSON, `"failure-details":[{`, `"failure-details":[`+strings.Join(details, ",")+`,{`, 1))
	if len(r.problems) > 0 || r.Reports != 1 || !strings.Contains(r.text(t), "\n20000 example.com sts certificate-expired mx.example.com Google Inc.") {
		t.Errorf("problems %q\n%.1000s", r.problems, r.text(t))
	}
}

func TestAHugeMessageInAnMboxSparesTheNext(t *testing.T) {
	google := corpus(t)[0].mail
	huge := "TLS-Report-Domain: example.com\nContent-Type: multipart/report; boundary=a\n\n" + strings.Repeat(strings.Repeat("x", 1023)+"\n", 40<<10)
	r := read(mbox(huge, google))
	if r.Reports != 1 || r.Inputs != 2 || len(r.problems) != 1 || !strings.HasPrefix(r.problems[0], "f: message 1: a broken message: more than 32 MiB") {
		t.Errorf("%d reports in %d, problems %q", r.Reports, r.Inputs, r.problems)
	}
}

func FuzzRead(f *testing.F) {
	for _, s := range corpus(f) {
		for _, text := range []string{s.json, compress(f, s.json), s.mail, mbox(s.mail, s.mail)} {
			f.Add(text)
		}
	}
	f.Add(nested("multipart/mixed", 20))
	f.Fuzz(func(t *testing.T, text string) {
		r := read(text)
		for _, report := range r.reports {
			if _, err := json.Marshal(report); err != nil {
				t.Error(err)
			}
		}
		if got := r.text(t); strings.ContainsAny(got, "\x1b\u202e\x00\r") || (got == "") != (r.totals.Sessions == 0 && !strings.Contains(got, "DAY")) {
			t.Errorf("%q", got)
		}
	})
}
