package waiting

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

const policyMaps = "smtp_tls_policy_maps"

// ourMap is a socketmap in smtp_tls_policy_maps, and the map's name.
var ourMap = regexp.MustCompile(`socketmap:[^\s,]+:([^\s,:]+)`)

// ReadPostfix reads the output of "postqueue -j", a JSON object for each message.
// settings is the output of "postconf -h smtp_tls_policy_maps relayhost".
func ReadPostfix(queue io.Reader, settings string) (*Queue, error) {
	q := &Queue{MTA: Postfix, byCause: make(map[groupKey]*Group)}
	maps, relay, _ := strings.Cut(settings, "\n")
	if m := ourMap.FindStringSubmatch(maps); m != nil {
		q.maps = m[1]
	}
	q.relay = strings.TrimSpace(relay)
	bounded := &bounded{r: queue}
	messages := json.NewDecoder(bounded)
	for {
		var m struct {
			Queue      string `json:"queue_name"`
			ID         string `json:"queue_id"`
			Arrived    int64  `json:"arrival_time"`
			Recipients []struct {
				Address string `json:"address"`
				Reason  string `json:"delay_reason"`
			}
		}
		bounded.left = maxMessage
		switch err := messages.Decode(&m); {
		case errors.Is(err, io.EOF):
			return q, nil
		case err != nil:
			return nil, fmt.Errorf("reading the output of postqueue -j: %w", err)
		}
		var delays []delay
		for _, r := range m.Recipients {
			if r.Reason != "" {
				delays = append(delays, delay{r.Address, r.Reason})
			}
		}
		q.add(m.ID, time.Unix(m.Arrived, 0), delays)
	}
}

var errTooLong = fmt.Errorf("one message has more than %d MiB", maxMessage>>20)

// bounded fails when more than left bytes are read.
type bounded struct {
	r    io.Reader
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, errTooLong
	}
	return n, err
}
