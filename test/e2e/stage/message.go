package stage

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// deliveryTime limits the time from submission to an outcome. Postfix itself
// waits up to 10 s for a socketmap.
const deliveryTime = 60 * time.Second

// An MTA is a mail relay: a *Postfix or an *Exim.
type MTA interface {
	// Name has the version: "Postfix 3.10.13".
	Name() string
	// Send submits a message to a recipient at the domain, as a local user
	// would.
	Send(t *testing.T, domain string) *Message

	outcomes(t *testing.T, recipient string) []Outcome
	retry(t *testing.T, id string)
}

// A Message has one recipient, which no other message has.
type Message struct {
	Recipient string
	MTA       MTA

	tries int // outcomes returned so far
}

// An Outcome is what an MTA logged about one attempt to deliver a message.
type Outcome struct {
	QueueID string
	Status  string // sent, deferred, bounced
	Relay   string // the last host, "mx.example[127.1.0.1]:25", or "none"
	Reason  string // in the MTA's words
	TLS     string // verdict on the TLS connection: Verified, Trusted, Untrusted, Anonymous; empty without TLS
	Log     string // all log lines of the attempt
}

func (o Outcome) String() string {
	tls := "without TLS"
	if o.TLS != "" {
		tls = "over TLS (" + strings.ToLower(o.TLS) + ")"
	}
	return fmt.Sprintf("%s: %s, %s: %s", o.Status, o.Relay, tls, o.Reason)
}

// Outcome waits for the outcome of the next attempt.
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

// Retry makes the MTA try the message again now.
func (m *Message) Retry(t *testing.T, last Outcome) Outcome {
	t.Helper()
	if last.Status != "deferred" {
		t.Fatalf("the message to %s is no longer in the queue: %s", m.Recipient, last)
	}
	m.MTA.retry(t, last.QueueID)
	return m.Outcome(t)
}
