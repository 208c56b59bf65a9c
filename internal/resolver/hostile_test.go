package resolver

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const realTXT = "example.com. 300 IN TXT real"

func TestMismatchedAnswersAreIgnored(t *testing.T) {
	t.Parallel()
	forge := func(change func(m *dns.Msg)) func(q *dns.Msg) []byte {
		return func(q *dns.Msg) []byte {
			m := reply(q, 0, "example.com. 300 IN TXT forged")
			change(m)
			return pack(m)
		}
	}
	for name, forged := range map[string]func(q *dns.Msg) []byte{
		"another id":      forge(func(m *dns.Msg) { m.Id++ }),
		"another name":    forge(func(m *dns.Msg) { m.Question[0].Name = "example.org." }),
		"another type":    forge(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeA }),
		"another class":   forge(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
		"no question":     forge(func(m *dns.Msg) { m.Question = nil }),
		"two questions":   forge(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }),
		"a question":      forge(func(m *dns.Msg) { m.Response = false }),
		"another opcode":  forge(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }),
		"garbage":         func(*dns.Msg) []byte { return []byte(strings.Repeat("\xff", 100)) },
		"nothing":         func(*dns.Msg) []byte { return nil },
		"half a header":   func(q *dns.Msg) []byte { return pack(q)[:6] },
		"half a question": func(q *dns.Msg) []byte { return pack(reply(q, 0))[:20] },
		"a pointer to itself": func(q *dns.Msg) []byte {
			b := pack(reply(q, 0))
			return append(b[:12], 0xc0, 12, 0, 16, 0, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := (&fake{udp: func(q *dns.Msg) [][]byte { return [][]byte{forged(q), forged(q), pack(reply(q, 0, realTXT))} }}).start(t, "127.0.0.1", 0)
			a, err := resolverFor(t, Config{}, f).Query(t.Context(), "example.com", TypeTXT)
			if err != nil || !slices.Equal(a.Texts, []string{"real"}) {
				t.Errorf("%+v, %v", a, err)
			}
			if n := len(f.questions()); n != 1 {
				t.Errorf("asked %d times", n)
			}
			alone := (&fake{udp: func(q *dns.Msg) [][]byte { return [][]byte{forged(q)} }}).start(t, "127.0.0.1", 0)
			if _, err := resolverFor(t, Config{Timeout: silence / 10}, alone).Query(t.Context(), "example.com", TypeTXT); kind(t, err) != KindTimeout {
				t.Errorf("alone: %v", err)
			}
		})
	}
}

func TestAFloodOfForgedAnswersEndsWithTheTimeout(t *testing.T) {
	t.Parallel()
	f := (&fake{udp: func(q *dns.Msg) [][]byte {
		q.Id++
		return slices.Repeat([][]byte{pack(reply(q, 0, realTXT))}, 1000)
	}}).start(t, "127.0.0.1", 0)
	if _, err := resolverFor(t, Config{Timeout: silence}, f).Query(t.Context(), "example.com", TypeTXT); kind(t, err) != KindTimeout {
		t.Errorf("%v", err)
	}
}

func TestNamesAreComparedWithoutCase(t *testing.T) {
	f := (&fake{udp: only(func(q *dns.Msg) *dns.Msg {
		m := reply(q, 0, "eXample.com. 300 IN CNAME WWW.example.com.", "www.EXAMPLE.com. 300 IN TXT real")
		m.Question[0].Name = "ExAmPlE.CoM."
		return m
	})}).start(t, "127.0.0.1", 0)
	a, err := resolverFor(t, Config{}, f).Query(t.Context(), "EXAMPLE.com.", TypeTXT)
	if err != nil || !slices.Equal(a.Texts, []string{"real"}) || a.Name != "www.example.com" || a.CNAMEs[0] != "example.com" {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestOnlyRecordsOfTheNameCount(t *testing.T) {
	for name, records := range map[string][]string{
		"another owner":            {"www.example.com. 1 IN TXT wrong"},
		"the parent":               {"com. 1 IN TXT wrong"},
		"another class":            {"example.com. 1 CH TXT wrong"},
		"another type":             {"example.com. 1 IN MX 10 mx.example.com."},
		"a CNAME elsewhere":        {"www.example.com. 1 IN CNAME x.example.com.", "x.example.com. 1 IN TXT wrong"},
		"where no CNAME leads":     {"x.example.com. 1 IN TXT wrong", "y.example.com. 1 IN CNAME x.example.com."},
		"a CNAME of another class": {"example.com. 1 CH CNAME x.example.com.", "x.example.com. 1 IN TXT wrong"},
	} {
		t.Run(name, func(t *testing.T) {
			f := (&fake{udp: only(func(q *dns.Msg) *dns.Msg { return reply(q, 0, append(records, realTXT)...) })}).start(t, "127.0.0.1", 0)
			a, err := resolverFor(t, Config{}, f).Query(t.Context(), "example.com", TypeTXT)
			if err != nil || !slices.Equal(a.Texts, []string{"real"}) || a.TTL != 300*time.Second {
				t.Errorf("beside the real one: %+v, %v", a, err)
			}
			f = (&fake{udp: only(func(q *dns.Msg) *dns.Msg { return reply(q, 0, records...) })}).start(t, "127.0.0.1", 0)
			a, err = resolverFor(t, Config{}, f).Query(t.Context(), "example.com", TypeTXT)
			if err != nil || a.Found() || len(a.CNAMEs) != 0 {
				t.Errorf("alone: %+v, %v", a, err)
			}
		})
	}
}

// TestCNAMEsThatLeadNowhere has every chain end as a malformed answer after a
// bounded number of questions.
func TestCNAMEsThatLeadNowhere(t *testing.T) {
	chain := func(n int) []string {
		var records []string
		for i := range n {
			records = append(records, fmt.Sprintf("n%d.example. 60 IN CNAME n%d.example.", i, i+1))
		}
		return records
	}
	number := func(q *dns.Msg) (n int) {
		fmt.Sscanf(q.Question[0].Name, "n%d.", &n)
		return n
	}
	for name, answer := range map[string]func(q *dns.Msg) *dns.Msg{
		"to itself": func(q *dns.Msg) *dns.Msg { return reply(q, 0, "n0.example. 60 IN CNAME n0.example.") },
		"in a loop": func(q *dns.Msg) *dns.Msg {
			return reply(q, 0, "n0.example. 60 IN CNAME x.example.", "x.example. 60 IN CNAME n0.example.")
		},
		"in a loop of messages": func(q *dns.Msg) *dns.Msg {
			n := number(q)
			return reply(q, 0, fmt.Sprintf("n%d.example. 60 IN CNAME n%d.example.", n, (n+1)%3))
		},
		"too far in one message": func(q *dns.Msg) *dns.Msg { return reply(q, 0, chain(maxCNAMEs+1)...) },
		"too far, step by step": func(q *dns.Msg) *dns.Msg {
			n := number(q)
			return reply(q, 0, fmt.Sprintf("n%d.example. 60 IN CNAME n%d.example.", n, n+1))
		},
		"too far, in strides": func(q *dns.Msg) *dns.Msg {
			n := number(q)
			return reply(q, 0, chain(n + 5)[n:]...)
		},
		"two ways at once": func(q *dns.Msg) *dns.Msg {
			return reply(q, 0, "n0.example. 60 IN CNAME a.example.", "n0.example. 60 IN CNAME b.example.", "a.example. 60 IN TXT a")
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := (&fake{udp: only(answer)}).start(t, "127.0.0.1", 0)
			a, err := resolverFor(t, Config{}, f).Query(t.Context(), "n0.example", TypeTXT)
			if err == nil || kind(t, err) != KindMalformed {
				t.Fatalf("%+v, %v", a, err)
			}
			if strings.Contains(name, "loop") && !strings.Contains(err.Error(), "CNAME loop at n0.example") {
				t.Errorf("%v", err)
			}
			if n := len(f.questions()); n > maxQuestions {
				t.Errorf("%d questions", n)
			}
		})
	}
	t.Run("the longest that is followed", func(t *testing.T) {
		f := (&fake{udp: only(func(q *dns.Msg) *dns.Msg {
			return reply(q, 0, append(chain(maxCNAMEs), fmt.Sprintf("n%d.example. 60 IN TXT real", maxCNAMEs))...)
		})}).start(t, "127.0.0.1", 0)
		a, err := resolverFor(t, Config{}, f).Query(t.Context(), "n0.example", TypeTXT)
		if err != nil || !slices.Equal(a.Texts, []string{"real"}) || len(a.CNAMEs) != maxCNAMEs {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

func TestAFailureBehindACNAMESaysWhere(t *testing.T) {
	f := (&fake{udp: only(func(q *dns.Msg) *dns.Msg {
		if q.Question[0].Name == "a.example." {
			return reply(q, 0, "a.example. 60 IN CNAME b.example.")
		}
		return reply(q, dns.RcodeRefused)
	})}).start(t, "127.0.0.1", 0)
	_, err := resolverFor(t, Config{}, f).Query(t.Context(), "a.example", TypeTXT)
	if kind(t, err) != KindRefused || !strings.HasPrefix(err.Error(), "DNS TXT a.example: refused") || !strings.Contains(err.Error(), "at its CNAME b.example: REFUSED") {
		t.Errorf("%v", err)
	}
}

func TestTheEndOfACNAMEIsAskedForWithItsEscapes(t *testing.T) {
	f := (&fake{udp: only(func(q *dns.Msg) *dns.Msg {
		if q.Question[0].Name == "a.example." {
			return reply(q, 0, `a.example. 60 IN CNAME b\.\200\ x.example.`)
		}
		return reply(q, 0, `b\.\200\ x.example. 60 IN TXT real`)
	})}).start(t, "127.0.0.1", 0)
	a, err := resolverFor(t, Config{}, f).Query(t.Context(), "a.example", TypeTXT)
	if err != nil || !slices.Equal(a.Texts, []string{"real"}) {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestBrokenRecords has bytes for records, behind the header and the question.
func TestBrokenRecords(t *testing.T) {
	const owner = "\xc0\x0c" // the question's name
	for name, c := range map[string]struct {
		qtype uint16
		rr    string
	}{
		"an A record without an address":    {dns.TypeA, owner + "\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x00"},
		"an A record of three bytes":        {dns.TypeA, owner + "\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x03\x01\x02\x03"},
		"an AAAA record of four bytes":      {dns.TypeAAAA, owner + "\x00\x1c\x00\x01\x00\x00\x00\x3c\x00\x04\x01\x02\x03\x04"},
		"a CNAME without a name":            {dns.TypeA, owner + "\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x00"},
		"a TXT record beyond the message":   {dns.TypeTXT, owner + "\x00\x10\x00\x01\x00\x00\x00\x3c\x40\x00\x05hello"},
		"a TXT string beyond its record":    {dns.TypeTXT, owner + "\x00\x10\x00\x01\x00\x00\x00\x3c\x00\x03\x09he"},
		"an MX record without a host":       {dns.TypeMX, owner + "\x00\x0f\x00\x01\x00\x00\x00\x3c\x00\x02\x00\x0a"},
		"a name that points to itself":      {dns.TypeMX, owner + "\x00\x0f\x00\x01\x00\x00\x00\x3c\x00\x04\x00\x0a\xc0\x2b"},
		"a name that points beyond the end": {dns.TypeMX, owner + "\x00\x0f\x00\x01\x00\x00\x00\x3c\x00\x04\x00\x0a\xff\xff"},
		"a TLSA record of two bytes":        {dns.TypeTLSA, owner + "\x00\x34\x00\x01\x00\x00\x00\x3c\x00\x02\x03\x01"},
		"half a record header":              {dns.TypeA, owner + "\x00\x01\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			f := (&fake{udp: func(q *dns.Msg) [][]byte {
				m := reply(q, 0)
				m.Extra = nil
				b := append(pack(m), c.rr...)
				b[7] = 1
				return [][]byte{b}
			}}).start(t, "127.0.0.1", 0)
			a, err := resolverFor(t, Config{}, f).Query(t.Context(), "example.com", Type(c.qtype))
			if err == nil || kind(t, err) != KindMalformed {
				t.Errorf("%+v, %v", a, err)
			}
		})
	}
}

func TestTCP(t *testing.T) {
	t.Parallel()
	truncated := only(func(q *dns.Msg) *dns.Msg {
		m := reply(q, 0, "example.com. 300 IN TXT cut")
		m.Truncated = true
		return m
	})
	var many []string
	for i := range 3000 {
		many = append(many, fmt.Sprintf("example.com. 300 IN TXT t%d", i))
	}
	for _, c := range []struct {
		name string
		udp  func(q *dns.Msg) [][]byte
		tcp  func(q *dns.Msg) []byte
		n    int // records
		kind Kind
	}{
		{"a truncated answer is asked for again", truncated, func(q *dns.Msg) []byte { return frame(pack(reply(q, 0, realTXT))) }, 1, 0},
		{"so is one cut in the middle of a record", func(q *dns.Msg) [][]byte {
			b := truncated(q)[0]
			return [][]byte{b[:len(b)-13]}
		}, func(q *dns.Msg) []byte { return frame(pack(reply(q, 0, realTXT))) }, 1, 0},
		{"and one that is larger than a datagram may be", func(q *dns.Msg) [][]byte { return [][]byte{pack(reply(q, 0, many[:300]...))} },
			func(q *dns.Msg) []byte { return frame(pack(reply(q, 0, many[:300]...))) }, 300, 0},
		{"thousands of records", truncated, func(q *dns.Msg) []byte {
			m := reply(q, 0, many...)
			m.Compress = true
			return frame(pack(m))
		}, 3000, 0},
		{"bytes after the answer are not waited for", truncated, func(q *dns.Msg) []byte { return append(frame(pack(reply(q, 0, realTXT))), 0xff, 0xff, 1) }, 1, 0},
		{"a length beyond what comes", truncated, func(q *dns.Msg) []byte { return append([]byte{0xff, 0xff}, pack(reply(q, 0, realTXT))...) }, 0, KindMalformed},
		{"a length within the answer", truncated, func(q *dns.Msg) []byte { return append([]byte{0, 40}, pack(reply(q, 0, realTXT))...) }, 0, KindMalformed},
		{"a length of zero", truncated, func(*dns.Msg) []byte { return []byte{0, 0} }, 0, KindMalformed},
		{"half a length", truncated, func(*dns.Msg) []byte { return []byte{0} }, 0, KindMalformed},
		{"an answer to another question", truncated, func(q *dns.Msg) []byte { q.Id++; return frame(pack(reply(q, 0, realTXT))) }, 0, KindMalformed},
		{"truncated again", truncated, func(q *dns.Msg) []byte { return frame(truncated(q)[0]) }, 0, KindMalformed},
		{"a stall", truncated, func(*dns.Msg) []byte { return nil }, 0, KindTimeout},
		{"nobody there", truncated, nil, 0, KindMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := Config{}
			if c.kind == KindTimeout {
				conf.Timeout = silence
			}
			f := (&fake{udp: c.udp, tcp: c.tcp}).start(t, "127.0.0.1", 0)
			a, err := resolverFor(t, conf, f).Query(t.Context(), "example.com", TypeTXT)
			if c.kind != 0 {
				if err == nil || kind(t, err) != c.kind {
					t.Errorf("%+v, %v", a, err)
				}
				return
			}
			if err != nil || len(a.Data()) != c.n || slices.Contains(a.Texts, "cut") {
				t.Errorf("%+v, %v", a, err)
			}
		})
	}
}
