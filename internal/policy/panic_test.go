package policy

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// A bomb is a resolver that panics at one type of question.
type bomb struct {
	Resolver
	armed resolver.Type
}

func (b bomb) Query(ctx context.Context, name string, qtype resolver.Type) (*resolver.Answer, error) {
	if qtype == b.armed {
		panic("on purpose")
	}
	return b.Resolver.Query(ctx, name, qtype)
}

// The keeper survives a panic in its own goroutine; one in another would end
// the daemon, and hostile DNS messages and certificates are read in others.
func TestAPanicInAFetchComesToTheCallerAndLeavesNothingBehind(t *testing.T) {
	for name, arm := range map[string]func(*Client){
		"in an AAAA lookup": func(c *Client) { c.resolver = bomb{c.resolver, resolver.TypeAAAA} },
		"in an A lookup":    func(c *Client) { c.resolver = bomb{c.resolver, resolver.TypeA} },
		"in a handshake": func(c *Client) {
			c.tls.VerifyConnection = func(tls.ConnectionState) error { panic("on purpose") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, map[string]dialing{"2a00::1": stall, "93.184.215.14": answer}, func(t *testing.T, w *world) {
				arm(w.client)
				limiter := NewAddressLimiter(1)
				defer func() {
					if v := recover(); v == nil || !strings.Contains(fmt.Sprint(v), "on purpose") {
						t.Errorf("got %v", v)
					}
					if len(limiter.slots) != 0 {
						t.Errorf("places are still taken: %v", limiter.slots)
					}
				}()
				_, err := w.client.Fetch(t.Context(), "example.test", limiter.Waiting(9))
				t.Errorf("got %v", err)
			})
		})
	}
}
