package waiting_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/sts-tlsmap/sts-tlsmap/internal/control"
	"github.com/sts-tlsmap/sts-tlsmap/internal/dane"
	"github.com/sts-tlsmap/sts-tlsmap/internal/mta"
	"github.com/sts-tlsmap/sts-tlsmap/internal/text"
	"github.com/sts-tlsmap/sts-tlsmap/internal/waiting"
)

var now = time.Date(2026, 11, 30, 20, 0, 0, 0, time.UTC)

// captured are the queues that the end-to-end rows left in real MTAs.
func captured(t *testing.T, name string) *waiting.Queue {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(name, "postfix") {
		return postfix(t, string(text), "socketmap:inet:127.0.0.1:8461:postfix\n\n")
	}
	if strings.HasPrefix(name, "sendmail") {
		return sendmail(t, string(text))
	}
	spool := fstest.MapFS{}
	for _, f := range txtar.Parse(text).Files {
		spool[f.Name] = &fstest.MapFile{Data: f.Data}
	}
	q, err := waiting.ReadExim(strings.NewReader(string(spool["queue"].Data)), spool, now)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func sendmail(t *testing.T, queue string) *waiting.Queue {
	t.Helper()
	q, err := waiting.ReadSendmail(strings.NewReader(queue), now)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func postfix(t *testing.T, queue, settings string) *waiting.Queue {
	t.Helper()
	q, err := waiting.ReadPostfix(strings.NewReader(queue), settings)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// enforced is a daemon that holds an enforced policy of every domain.
var enforced = waiting.Source{
	Held: func(_ context.Context, domain string) (control.Held, error) {
		return control.Held{Domain: domain, Entry: &control.Entry{Mode: "enforce", Expires: now.Add(24 * time.Hour),
			Policy: "version: STSv1\nmode: enforce\nmx: mx1." + domain + "\nmax_age: 604800\n"}}, nil
	},
	Reply: func(_ context.Context, _, domain string) (string, error) { return replies[domain], nil },
	Now:   now,
}

// replies are the daemon's where Postfix got no policy.
var replies = map[string]string{
	"keyword.test":  "TEMP MTA-STS policy lists no usable MX host name; see: sts-tlsmap -explain keyword.test",
	"only-ip.test":  "TEMP MTA-STS policy lists no usable MX host name; see: sts-tlsmap -explain only-ip.test",
	"z-down.test":   "OK secure match=mx1.z-down.test servername=hostname",
	"z-paused.test": "NOTFOUND ",
}

// causes returns the cause of each domain.
func causes(q *waiting.Queue) map[string]string {
	got := make(map[string]string)
	for _, g := range q.Groups {
		got[g.Domain] = g.Cause
	}
	return got
}

// wanted are the causes of the rows of test/e2e/enforce.
var wanted = map[string]string{
	"clear.test": "no-starttls", "self-signed.test": "certificate", "wrong-name.test": "certificate", "expired.test": "certificate",
	"c-notyet.test": "certificate", "c-otherca.test": "certificate", "c-nointer.test": "certificate", "alias-other.test": "certificate",
	"refused.test": "handshake", "f-refused.test": "handshake", "hang-up.test": "handshake", "f-hangup.test": "handshake",
	"f-garbage.test": "handshake", "keyword.test": "no-usable-mx", "only-ip.test": "no-usable-mx", "x-all-bad.test": "certificate",
	"tlsa-alone.signed.example": "dane", "tlsa-fails.signed.example": "dane", "absent-bad.signed.example": "certificate",
}

// wantedOf are the causes of rows where MTAs and versions differ.
var wantedOf = map[string]map[string]string{
	"postfix-3.7":  {"unlisted.test": "certificate", "some-fail.signed.example": "dane", "f-stall.test": "handshake", "": "replies-now"},
	"postfix-3.10": {"unlisted.test": "unlisted", "deep.test": "unlisted", "swapped.test": "certificate", "forged-mx.test": "unlisted", "": "replies-now"},
	"postfix-3.11": {"unlisted.test": "unlisted", "deep.test": "unlisted", "swapped.test": "certificate", "forged-mx.test": "unlisted", "": "replies-now"},
	"exim": {"unlisted.test": "unlisted", "deep.test": "unlisted", "swapped.test": "certificate", "mismatch.signed.example": "dane",
		"mx-fails.test": "dns", "all-fail.signed.example": "dns", "all-gone.test": "no-host", "null.signed.example": "no-host",
		"alone-mismatch.signed.example": "dane", "z-down.test": "no-answer"},
}

var (
	otherReasons = []string{"c-down.test", "f-421.test", "f-451.test"}
	allCaptured  = []string{"postfix-3.7.json", "postfix-3.10.json", "postfix-3.11.json", "exim-4.96.txtar", "exim-4.98.txtar", "exim-4.100.txtar"}
)

func TestTheQueuesOfRealMTAsAreExplained(t *testing.T) {
	for _, name := range allCaptured {
		t.Run(name, func(t *testing.T) {
			q := captured(t, name)
			q.Judge(t.Context(), enforced)
			got := causes(q)
			mta := strings.TrimSuffix(name, filepath.Ext(name))
			if q.MTA == waiting.Exim {
				mta = "exim"
			}
			for _, table := range []map[string]string{wanted, wantedOf[mta]} {
				for domain, want := range table {
					if got[domain] != want {
						t.Errorf("%s waits because of %q, want %q", domain, got[domain], want)
					}
				}
			}
			for _, domain := range otherReasons {
				if got[domain] != "" {
					t.Errorf("%s waits because of %q; it has nothing to do with TLS", domain, got[domain])
				}
			}
			if q.Others < len(otherReasons) {
				t.Errorf("%d messages wait for other reasons", q.Others)
			}
			for _, g := range q.Groups {
				for _, s := range g.Steps {
					if strings.Contains(s.Command, "DOMAIN") || strings.Contains(s.Command, "ID") || s.Command == "" {
						t.Errorf("%s: the command is %q", g.Domain, s.Command)
					}
				}
			}
		})
	}
}

const oneWaits = `{"queue_name": "deferred", "queue_id": "67514CF", "arrival_time": 1796061636, "message_size": 274, "forced_expire": false, ` +
	`"sender": "s@relay.test", "recipients": [{"address": "a@Wrong.Test", "delay_reason": "Server certificate not verified"},` +
	`{"address": "b@wrong.test", "delay_reason": "Server certificate not verified"}]}
{"queue_name": "active", "queue_id": "6751400", "arrival_time": 1796061630, "recipients": [{"address": "a@new.test"}]}
{"queue_name": "deferred", "queue_id": "6751401", "arrival_time": 1796061637, "recipients": [{"address": "a@wrong.test", "delay_reason": "Server certificate not verified"}]}
{"queue_name": "deferred", "queue_id": "6751402", "arrival_time": 1796061637, "recipients": [{"address": "a@full.test", "delay_reason": "host mx said: 452 full"}]}
`

func print(t *testing.T, q *waiting.Queue) string {
	t.Helper()
	var b strings.Builder
	if err := q.WriteText(&b, now); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTheQueueOfARealSendmailIsExplained(t *testing.T) {
	q := captured(t, "sendmail-8.18.2.txt")
	q.Judge(t.Context(), enforced)
	want := map[string]string{
		"clear.test": "no-starttls", "self-signed.test": "certificate", "wrong-name.test": "certificate", "expired.test": "certificate",
		"swapped.test": "certificate", "unlisted.test": "unlisted", "deep.test": "unlisted", "refused.test": "handshake", "hang-up.test": "handshake",
		"keyword.test": "no-usable-mx", "only-ip.test": "no-usable-mx", "mismatch.signed.example": "dane", "tlsa-fails.signed.example": "dane",
	}
	if got := causes(q); !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if q.Others != 1 {
		t.Errorf("%d messages wait for other reasons, want that to f-451.test", q.Others)
	}
	for _, g := range q.Groups {
		if g.Domain == "clear.test" && (g.Messages != 2 || !g.Oldest.Equal(time.Date(2026, 12, 1, 3, 46, 0, 0, time.UTC))) {
			t.Errorf("clear.test: %+v", g)
		}
		if s := g.Steps[len(g.Steps)-1]; g.Domain == "clear.test" && s.Command != "sendmail -v -qI"+g.ID {
			t.Errorf("the last command is %q", s.Command)
		}
	}
}

func TestSendmailsTimesAreOfThisYearOrTheLast(t *testing.T) {
	for text, want := range map[string]time.Time{
		"Nov 29 08:07": time.Date(2026, 11, 29, 8, 7, 0, 0, time.UTC),
		"Dec  9 23:59": time.Date(2025, 12, 9, 23, 59, 0, 0, time.UTC),
	} {
		q := sendmail(t, "6B13kOj1000072*       7      30022 "+text+" <>\n\t\t (STS authentication failed)\n\t\t\t\t\t\t<a@x.test>\n")
		q.Judge(t.Context(), enforced)
		if len(q.Groups) != 1 || !q.Groups[0].Oldest.Equal(want) || q.Groups[0].Domain != "x.test" {
			t.Errorf("%s: %+v", text, q.Groups)
		}
	}
}

func TestTheOutputHasCauseMessagePolicyAndCommands(t *testing.T) {
	t.Setenv("TZ", "UTC")
	q := postfix(t, oneWaits, "\n\n")
	q.Judge(t.Context(), enforced)
	want := `wrong.test: 2 messages wait, the oldest since ` + local("2026-11-30 18:00:36") + ` (1h59m ago)
  cause     The MX host's certificate is not good: it has another name, has
            expired, or is from an authority that this machine does not know.
  Postfix   Server certificate not verified
  policy    enforce, until ` + local("2026-12-01 20:00:00") + ` (in 1d), for mx1.wrong.test
  To see what each MX host shows now:
      sts-tlsmap -probe wrong.test
  If the mail cannot wait for the domain, to ignore its policy for 4 hours:
      sts-tlsmap -exempt wrong.test -for 4h
  To try a message again now:
      postqueue -i 67514CF

In all: 2 messages wait for these reasons. 1 message waits for other reasons.
`
	if got := print(t, q); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// local is a moment, given in UTC, as it is printed here.
func local(s string) string {
	at, err := time.Parse(time.DateTime, s)
	if err != nil {
		panic(err)
	}
	return text.Clock(at)
}

func TestWithoutMailThatWaitsForUsTheOutputSaysSo(t *testing.T) {
	q := postfix(t, "", "\n\n")
	q.Judge(t.Context(), enforced)
	if got, want := print(t, q), "No mail in Postfix's queue waits because of TLS or of sts-tlsmap.\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// deferred is the queue of Postfix with one message.
func deferred(domain, reason string) string {
	recipient, err := json.Marshal(map[string]string{"address": "a@" + domain, "delay_reason": reason})
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf(`{"queue_name": "deferred", "queue_id": "67514CF", "arrival_time": 1796061636, "recipients": [%s]}`+"\n", recipient)
}

func TestTheCommandsFitWhatTheDaemonHolds(t *testing.T) {
	const ours = "socketmap:inet:127.0.0.1:8461:postfix\n\n"
	entry := func(mode string, until time.Time) control.Held {
		return control.Held{Entry: &control.Entry{Mode: mode, Expires: until, Policy: "version: STSv1\nmode: " + mode + "\nmx: a.test\nmx: b.test\nmx: *.c.test\nmax_age: 604800\n"}}
	}
	for _, tt := range []struct {
		name, reason, settings string
		held                   control.Held
		heldErr                error
		reply                  string
		replyErr, daemon       error
		testing                bool

		cause    string // empty: nothing waits because of TLS
		policy   string // part of it
		commands []string
	}{
		{name: "enforced", reason: "Server certificate not verified", held: entry("enforce", now.Add(time.Hour)),
			cause: "certificate", policy: "for a.test, b.test, *.c.test",
			commands: []string{"sts-tlsmap -probe x.test", "sts-tlsmap -exempt x.test -for 4h", "postqueue -i 67514CF"}},
		{name: "expired", reason: "Server certificate not verified", held: entry("enforce", now.Add(-time.Hour)),
			cause: "certificate", policy: "none enforced", commands: []string{"sts-tlsmap -probe x.test", "sts-tlsmap -explain x.test"}},
		{name: "testing", reason: "Server certificate not verified", held: entry("testing", now.Add(time.Hour)),
			cause: "certificate", policy: "none enforced", commands: []string{"sts-tlsmap -probe x.test", "sts-tlsmap -explain x.test"}},
		{name: "testing, and a map enforces it", testing: true, reason: "TLS is required, but was not offered by host mx", held: entry("testing", now.Add(time.Hour)),
			cause: "no-starttls", policy: "testing, until", commands: []string{"sts-tlsmap -probe x.test", "sts-tlsmap -exempt x.test -for 4h", "postqueue -i 67514CF"}},
		{name: "nothing held", reason: "Cannot start TLS: handshake failure", heldErr: control.ErrNothingHeld,
			cause: "handshake", policy: "none enforced", commands: []string{"sts-tlsmap -probe x.test", "sts-tlsmap -explain x.test"}},
		{name: "the daemon was not asked", reason: "Cannot start TLS: handshake failure", heldErr: control.ErrNotAllowed,
			cause: "handshake", policy: "not known", commands: []string{"sts-tlsmap -probe x.test", "sts-tlsmap -exempt x.test -for 4h", "postqueue -i 67514CF"}},
		{name: "exempt", reason: "Server certificate not verified", held: control.Held{Exempt: true, ExemptUntil: now.Add(time.Hour)},
			cause: "certificate", policy: "exempt until", commands: []string{"postqueue -i 67514CF"}},
		{name: "DANE by the daemon's word", reason: "Server certificate not verified",
			held:  control.Held{Entry: entry("enforce", now.Add(time.Hour)).Entry, DANE: []control.DANE{{State: dane.Usable}}},
			cause: "certificate", policy: "does not override DANE", commands: []string{"sts-tlsmap -probe x.test"}},
		{name: "DANE by Postfix's word", reason: "no TLSA records found", held: entry("enforce", now.Add(time.Hour)),
			cause: "dane", policy: "does not override DANE", commands: []string{"sts-tlsmap -probe x.test", "sts-tlsmap -check"}},
		{name: "Postfix says unavailable, and a policy is enforced", reason: "server unavailable or unable to receive mail", held: entry("enforce", now.Add(time.Hour)),
			cause: "unlisted", policy: "enforce", commands: []string{"sts-tlsmap -refresh x.test", "sts-tlsmap -exempt x.test -for 4h", "postqueue -i 67514CF"}},
		{name: "Postfix says unavailable, and none is", reason: "server unavailable or unable to receive mail", heldErr: control.ErrNothingHeld},
		{name: "the daemon is down", reason: "client TLS configuration problem", settings: ours, replyErr: errors.New("connection refused"),
			cause: "no-answer", commands: []string{"systemctl start sts-tlsmap", "journalctl -u sts-tlsmap -n 50"}},
		{name: "the daemon answers again", reason: "client TLS configuration problem", settings: ours, reply: "NOTFOUND ",
			cause: "replies-now", commands: []string{"postqueue -i 67514CF", "sts-tlsmap -check"}},
		{name: "the daemon cannot start", reason: "client TLS configuration problem", settings: ours, reply: "TEMP line 3: bad", daemon: &control.NotStartedError{Reason: "line 3: bad"},
			cause: "not-started", commands: []string{"sts-tlsmap -check"}},
		{name: "the map is unknown", reason: "client TLS configuration problem", settings: ours, reply: "PERM unknown map postfx",
			cause: "unknown-map", commands: []string{"sts-tlsmap -recipe postfix"}},
		{name: "the stored policy is damaged", reason: "client TLS configuration problem", settings: ours,
			reply: "TEMP stored MTA-STS policy is damaged and could not be fetched again yet; see: sts-tlsmap -explain x.test",
			cause: "damaged", commands: []string{"sts-tlsmap -refresh x.test", "sts-tlsmap -exempt x.test -for 4h", "postqueue -i 67514CF"}},
		{name: "Postfix does not ask the daemon", reason: "client TLS configuration problem", settings: "hash:/etc/postfix/tls\n\n", reply: "OK",
			cause: "no-policy", commands: []string{"sts-tlsmap -check", "sts-tlsmap -query x.test"}},
		{name: "a new version's reason", reason: "client TLS configuration problem", settings: ours, reply: "TEMP something new",
			cause: "no-policy", commands: []string{"sts-tlsmap -check", "sts-tlsmap -query x.test"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := postfix(t, deferred("x.test", tt.reason), tt.settings)
			q.Judge(t.Context(), waiting.Source{
				Held:  func(context.Context, string) (control.Held, error) { return tt.held, tt.heldErr },
				Reply: func(context.Context, string, string) (string, error) { return tt.reply, tt.replyErr },
				Maps:  []mta.Map{{Testing: tt.testing}}, Err: tt.daemon, Now: now,
			})
			if tt.cause == "" {
				if len(q.Groups) != 0 || q.Others != 1 {
					t.Errorf("%d groups and %d others; want none, and one", len(q.Groups), q.Others)
				}
				return
			}
			if len(q.Groups) != 1 {
				t.Fatalf("%d groups", len(q.Groups))
			}
			g := q.Groups[0]
			var commands []string
			for _, s := range g.Steps {
				commands = append(commands, s.Command)
			}
			if g.Cause != tt.cause || !strings.Contains(g.Policy, tt.policy) || !slices.Equal(commands, tt.commands) {
				t.Errorf("cause %q, policy %q, commands %q\nwant  %q, %q, %q", g.Cause, g.Policy, commands, tt.cause, tt.policy, tt.commands)
			}
		})
	}
}

func TestWhatStopsAllMailIsSaidOnce(t *testing.T) {
	var queue strings.Builder
	for i := range 1000 {
		queue.WriteString(deferred(fmt.Sprintf("d%d.test", i), "client TLS configuration problem"))
	}
	q := postfix(t, queue.String(), "socketmap:inet:127.0.0.1:8461:postfix\n\n")
	asked := 0
	q.Judge(t.Context(), waiting.Source{Reply: func(context.Context, string, string) (string, error) {
		asked++
		return "", errors.New("connection refused")
	}})
	if len(q.Groups) != 1 || q.Groups[0].Messages != 1000 || q.Groups[0].Domains != 1000 || asked != 1 {
		t.Errorf("%d groups, %+v; asked %d times", len(q.Groups), q.Groups[0], asked)
	}
	if got := print(t, q); !strings.HasPrefix(got, "1000 domains: 1000 messages wait, the oldest since ") {
		t.Error(got)
	}
}

func TestWithARelayhostItsPolicyCounts(t *testing.T) {
	q := postfix(t, deferred("a.test", "Server certificate not verified")+deferred("b.test", "Server certificate not verified"), "\n[relay.test]:587\n")
	q.Judge(t.Context(), enforced)
	if len(q.Groups) != 1 || q.Groups[0].Domain != "relay.test" {
		t.Errorf("%+v", q.Groups[0])
	}
}

func TestWhatAHostSaysIsNoCause(t *testing.T) {
	const evil = "450 Server certificate not verified; client TLS configuration problem; sts-tlsmap does not answer; unknown map"
	q := postfix(t, deferred("x.test", "host mx.x.test[192.0.2.1] said: "+evil+" (in reply to RCPT TO command)"), "\n\n")
	if q.Judge(t.Context(), enforced); len(q.Groups) != 0 || q.Others != 1 {
		t.Errorf("%d groups, %d others: %s", len(q.Groups), q.Others, print(t, q))
	}
	q = exim(t, "a@x.test R=sts_tlsmap T=sts_tlsmap_smtp defer (-44) H=mx.x.test [192.0.2.1]: SMTP error from remote mail server after RCPT TO:<a@x.test>: "+evil)
	if q.Judge(t.Context(), enforced); len(q.Groups) != 0 || q.Others != 1 {
		t.Errorf("%d groups, %d others: %s", len(q.Groups), q.Others, print(t, q))
	}
}

func TestAnUnknownMapLeadsToTheRecipeOfTheMTA(t *testing.T) {
	q := exim(t, "a@x.test R=sts_tlsmap_ask defer (-1): unknown map exim2; known are: postfix, exim")
	q.Judge(t.Context(), enforced)
	if got := print(t, q); !strings.Contains(got, "sts-tlsmap -recipe exim\n") {
		t.Error(got)
	}
}

// exim is a queue with one message to a@x.test, and the last line of its log.
func exim(t *testing.T, line string) *waiting.Queue {
	t.Helper()
	spool := fstest.MapFS{"msglog/1xY5gO-000066-0V": {Data: []byte("2026-11-30 18:01:02 " + line + "\n")}}
	q, err := waiting.ReadExim(strings.NewReader(" 5m   315 1xY5gO-000066-0V <s@relay.test>\n          a@x.test\n\n"), spool, now)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestAHostileQueueDoesNoHarm(t *testing.T) {
	const evil = "Server certificate not verified \x1b[2J\u202e\r\n"
	queue := deferred("$(reboot).test", evil) + deferred("x\ny.test", evil) + deferred("[192.0.2.1]", evil) + deferred("-rf.test", evil) +
		deferred("long.test", evil+strings.Repeat("x", 10<<20))
	q := postfix(t, queue, "\n\n")
	q.Judge(t.Context(), enforced)
	got := print(t, q)
	if len(q.Groups) != 5 || len(got) > 10_000 {
		t.Errorf("%d groups, %d bytes", len(q.Groups), len(got))
	}
	for _, c := range got {
		if c != '\n' && (c < ' ' || c > '~') {
			t.Fatalf("%q is printed as it is", c)
		}
	}
	for line := range strings.Lines(got) {
		if command, ok := strings.CutPrefix(line, "      "); ok && strings.ContainsAny(command, "$()") || strings.Contains(line, " -rf.test -for") {
			t.Errorf("a command has text from the network: %s", line)
		}
	}
	var b strings.Builder
	if err := q.WriteJSON(&b); err != nil || strings.ContainsAny(b.String(), "\x1b\u202e\r") {
		t.Error("JSON has control characters", err)
	}
}

func TestALongQueueTakesLittleMemory(t *testing.T) {
	const messages, domains = 200_000, 50_000
	r, w := io.Pipe()
	go func() {
		b := bufio.NewWriterSize(w, 1<<16)
		for i := range messages {
			fmt.Fprintf(b, `{"queue_id": "Q%X", "arrival_time": 1796061636, "recipients": [{"address": "a@d%d.test", "delay_reason": "Server certificate not verified"}]}`+"\n", i, i%domains)
		}
		w.CloseWithError(b.Flush())
	}()
	q, err := waiting.ReadPostfix(r, "\n\n")
	if err != nil {
		t.Fatal(err)
	}
	q.Judge(t.Context(), enforced)
	if len(q.Groups) != 10_000 || q.Left != messages-10_000*messages/domains {
		t.Errorf("%d groups, %d messages left", len(q.Groups), q.Left)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > 32<<20 {
		t.Errorf("%d MiB in use", m.HeapAlloc>>20)
	}
	if got := print(t, q); !strings.Contains(got, "160000 messages wait for such reasons and had no room above.") {
		t.Error(got[max(0, len(got)-300):])
	}
}

func TestAMessageWithoutEndIsAnError(t *testing.T) {
	_, err := waiting.ReadPostfix(io.MultiReader(strings.NewReader(`{"queue_id": "`), endless{}), "\n\n")
	if err == nil || !strings.Contains(err.Error(), "too long") {
		t.Error(err)
	}
	for _, broken := range []string{"x", `{"recipients": 1}`, `{"queue_id": "A"`} {
		if _, err := waiting.ReadPostfix(strings.NewReader(broken), "\n\n"); err == nil {
			t.Errorf("%q is no error", broken)
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

const eximQueue = ` 5m   315 1xY5gO-000066-0V <s@relay.test> *** frozen ***
          a@wrong.test
          b@wrong.test

25h   321 1xY5gQ-00000000067-1F8b <>
          parent@here.test

`

func TestEximsMessageLogsAreReadForTheAddressesThatWait(t *testing.T) {
	const failed = ` R=sts_tlsmap T=sts_tlsmap_smtp defer (-37) H=mx.wrong.test [192.0.2.1]: TLS session: (certificate verification failed)`
	spool := fstest.MapFS{
		"msglog/1xY5gO-000066-0V": {Data: []byte("2026-11-30 18:01:01 Received from s@relay.test U=root P=local S=317\n" +
			"2026-11-30 18:01:02 gone@other.test" + failed + "\n" +
			"2026-11-30 18:01:02 A@wrong.test" + failed + "\n" +
			"2026-11-30 18:09:02 a@wrong.test R=sts_tlsmap T=sts_tlsmap_smtp defer (-53): retry time not reached for any host for 'wrong.test'\n" +
			"2026-11-30 18:01:02 b@wrong.test" + failed + "\n")},
		// split_spool_directory, log_timezone, and an alias
		"msglog/Q/1xY5gQ-00000000067-1F8b": {Data: []byte(strings.Repeat("2026-11-30 18:01:01 +0100 x@y.test"+failed+"\n", 5000) +
			"2026-11-30 18:01:01 +0100 child@there.test <parent@here.test>" + failed + "\n")},
	}
	q, err := waiting.ReadExim(strings.NewReader(eximQueue), spool, now)
	if err != nil {
		t.Fatal(err)
	}
	q.Judge(t.Context(), enforced)
	if got, want := causes(q), (map[string]string{"wrong.test": "certificate", "there.test": "certificate"}); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, g := range q.Groups {
		want := now.Add(-5 * time.Minute)
		if g.Domain == "there.test" {
			want = now.Add(-25 * time.Hour)
		}
		if g.Messages != 1 || !g.Oldest.Equal(want) {
			t.Errorf("%s: %d messages since %s", g.Domain, g.Messages, g.Oldest)
		}
		if last := g.Steps[len(g.Steps)-1].Command; last != "exim -M "+g.ID {
			t.Errorf("the last command is %q", last)
		}
	}
}

func TestMessageLogsThatCannotBeReadAreAnError(t *testing.T) {
	spool := os.DirFS(t.TempDir())
	if q, err := waiting.ReadExim(strings.NewReader(eximQueue), spool, now); err != nil || len(q.Groups) != 0 {
		t.Errorf("a message without a log is an error: %v", err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "msglog/1xY5gO-000066-0V"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := waiting.ReadExim(strings.NewReader(eximQueue), os.DirFS(dir), now); err == nil {
		t.Error("a folder in the place of a log is no error")
	}
	long := strings.NewReader(strings.Repeat("x", 10<<20) + "\n" + eximQueue)
	if _, err := waiting.ReadExim(long, spool, now); err == nil {
		t.Error("a line of 10 MB is no error")
	}
}

func TestAProbeReplacesTheAdviceToProbe(t *testing.T) {
	q := postfix(t, oneWaits+deferred("down.test", "client TLS configuration problem"), "\n\n")
	q.Judge(t.Context(), enforced)
	if got := q.ToProbe(); !slices.Equal(got, []string{"wrong.test"}) {
		t.Errorf("to probe: %q", got)
	}
	q.Probed("wrong.test", "would wait: mx1.wrong.test shows a certificate for other.test")
	got := print(t, q)
	if strings.Contains(got, "-probe") || !strings.Contains(got, "  probe     would wait: mx1.wrong.test shows a certificate for other.test\n") {
		t.Error(got)
	}
}
