package stage

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// deliveryTime is how long a message may take from the queue to an outcome.
// Postfix itself waits up to 10 s for a socketmap that does not answer.
const deliveryTime = 60 * time.Second

// An MTA is a mail relay on the stage: a *Postfix or an *Exim.
type MTA interface {
	// Name is what it is, with its version: "Postfix 3.10.13".
	Name() string
	// Send submits a message to somebody at the domain, as a local user would.
	Send(t *testing.T, domain string) *Message

	outcomes(t *testing.T, recipient string) []Outcome
	retry(t *testing.T, id string)
}

// A Message was given to an MTA for one recipient, whom no other message has.
type Message struct {
	Recipient string
	MTA       MTA

	tries int // outcomes seen so far
}

// An Outcome is what an MTA logged about one try to deliver a message.
type Outcome struct {
	QueueID string
	Status  string // sent, deferred, bounced
	Relay   string // the host tried last, "mx.example[127.1.0.1]:25", or "none"
	Reason  string // in the MTA's words
	TLS     string // how the relay's TLS was seen: Verified, Trusted, Untrusted, Anonymous; empty: there was none
	Log     string // all that was logged about the try
}

func (o Outcome) String() string {
	tls := "without TLS"
	if o.TLS != "" {
		tls = "over TLS (" + strings.ToLower(o.TLS) + ")"
	}
	return fmt.Sprintf("%s: %s, %s: %s", o.Status, o.Relay, tls, o.Reason)
}

// Outcome waits for the outcome of the next try to deliver the message.
func (m *Message) Outcome(t *testing.T) Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deliveryTime)
	defer cancel()
	var o Outcome
	err := Await(ctx, func() bool {
		tries := m.MTA.outcomes(t, m.Recipient)
		if len(tries) <= m.tries {
			return false
		}
		o = tries[m.tries]
		m.tries++
		return true
	})
	if err != nil {
		t.Fatalf("no outcome of the message to %s", m.Recipient)
	}
	return o
}

// Retry has the MTA try the message of an outcome again at once, and not when
// it would do so by itself.
func (m *Message) Retry(t *testing.T, last Outcome) Outcome {
	t.Helper()
	if last.Status != "deferred" {
		t.Fatalf("the message to %s is not in the queue any more: %s", m.Recipient, last)
	}
	m.MTA.retry(t, last.QueueID)
	return m.Outcome(t)
}
