package enforce

import (
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/testlab"
	"github.com/sts-tlsmap/sts-tlsmap/test/e2e/stage"
)

// impostor is the address of a server that stands in for the daemon. Exim asks
// it with the option askOther; shortTime makes Exim wait only a second.
const (
	impostor   = "127.0.0.1:8462"
	askOther   = "-DSTS_TLSMAP_SERVER=inet:" + impostor
	shortTime  = "-DSTS_TLSMAP_TIMEOUT=1s"
	foreground = "-odf"
	background = "-odb"
)

// waitsForSlowDiscovery sends the first message to a domain whose policy host
// is slow. The message is protected.
func waitsForSlowDiscovery(t *testing.T, w *world) {
	d := w.lab.Domain("slow-policy.test", testlab.With{})
	gate := d.Policy.Hold()
	m := w.exim.Submit(t, []string{d.Name}, background)[0]
	await(t, w, func() bool { return gate.Waiting() > 0 })
	gate.Open()
	check(t, m, m.Outcome(t), verified(d.Mail[0]), d.Mail...)
}

func waitsForPausedDaemon(t *testing.T, w *world) {
	d := w.lab.Domain("paused.test", testlab.With{MailFault: testlab.NoSTARTTLS})
	w.daemon.Pause(t)
	m := w.exim.Submit(t, []string{d.Name}, foreground, shortTime)[0]
	o := m.Outcome(t)
	w.daemon.Resume(t)
	check(t, m, o, deferred("MTA-STS: paused.test: "+noAnswer), d.Mail...)
	d.Mail[0].Behave(testlab.MailFine)
	check(t, m, m.Retry(t, o), verified(d.Mail[0]), d.Mail...)
}

// killedAfterRouting kills the daemon after it has answered, while Exim waits
// for the host's greeting.
func killedAfterRouting(t *testing.T, w *world) {
	sound := w.lab.Domain("killed-sound.test", testlab.With{})
	stripped := w.lab.Domain("killed-stripped.test", testlab.With{MailFault: testlab.NoSTARTTLS})
	gates := []*testlab.Gate{sound.Mail[0].Hold(), stripped.Mail[0].Hold()}
	m := w.exim.Submit(t, []string{sound.Name}, background)[0]
	n := w.exim.Submit(t, []string{stripped.Name}, background)[0]
	await(t, w, func() bool { return gates[0].Waiting() > 0 && gates[1].Waiting() > 0 })
	w.daemon.Kill(t)
	for _, g := range gates {
		g.Open()
	}
	check(t, m, m.Outcome(t), verified(sound.Mail[0]), sound.Mail...)
	o := n.Outcome(t)
	check(t, n, o, deferred(noTLS), stripped.Mail...)

	o = n.Retry(t, o)
	check(t, n, o, deferred(noAnswer), stripped.Mail...)
	w.daemon.Start(t)
	stripped.Mail[0].Behave(testlab.MailFine)
	check(t, n, n.Retry(t, o), verified(stripped.Mail[0]), stripped.Mail...)
}

// brokenReplies has an impostor send invalid or truncated replies.
func brokenReplies(t *testing.T, w *world) {
	d := w.lab.Domain("broken.test", testlab.With{})
	other := answerInstead(t)
	for _, r := range []string{
		"", "20", "20:", "9:NOTFOUND", "9:NOTFOUND ", "8:NOTFOUND,", "3:OK ,", "18:OK mx1.broken.test", "HTTP/1.1 400 Bad Request\r\n",
		"13:PERM no such map,", "15:TIMEOUT too slow,", "0:,",
	} {
		other.reply.Store(&r)
		before := other.asked.Load()
		m := w.exim.Submit(t, []string{d.Name}, foreground, askOther)[0]
		o := m.Outcome(t)
		if problems := differences(m, o, deferred(""), d.Mail...); len(problems) > 0 {
			t.Errorf("after the reply %q: %v", r, problems)
		}
		if n := other.asked.Load() - before; n != 1 { // mail may be deferred for other reasons
			t.Errorf("the reply %q was sent %d times, want 1", r, n)
		}
	}
}

// A liar sends a configured reply.
type liar struct {
	reply atomic.Pointer[string]
	asked atomic.Int64
}

// answerInstead starts a liar at the impostor's address.
func answerInstead(t *testing.T) *liar {
	t.Helper()
	l := new(liar)
	listenInstead(t, func(c net.Conn) {
		io.Copy(io.Discard, c) // until Exim half-closes
		l.asked.Add(1)
		io.WriteString(c, *l.reply.Load())
	})
	return l
}

// passOn forwards c to the daemon.
func passOn(c net.Conn) {
	out, err := net.Dial("tcp", stage.Endpoint)
	if err != nil {
		return // Exim treats a truncated reply as none
	}
	defer out.Close()
	go pass(out, c)
	pass(c, out)
}

// listenInstead calls serve for each connection to the impostor, until the test
// ends.
func listenInstead(t *testing.T, serve func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("tcp", impostor)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
}
