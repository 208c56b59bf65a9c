package waiting

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// ourMap is a socketmap in smtp_tls_policy_maps, and the map's name.
var ourMap = regexp.MustCompile(`socketmap:[^\s,]+:([^\s,:]+)`)

// ReadPostfix reads the output of "postqueue -j", a JSON object for each message.
// settings is the output of "postconf -h smtp_tls_policy_maps relayhost".
func ReadPostfix(queue io.Reader, settings string) (q *Queue, err error) {
	q = &Queue{MTA: Postfix, byCause: make(map[groupKey]*Group)}
	maps, relay, _ := strings.Cut(settings, "\n")
	if m := ourMap.FindStringSubmatch(maps); m != nil {
		q.maps = m[1]
	}
	q.relay = strings.TrimSpace(relay)
	lines := bufio.NewScanner(queue)
	lines.Buffer(nil, maxMessage)
	for lines.Scan() {
		var m struct {
			ID         string `json:"queue_id"`
			Arrived    int64  `json:"arrival_time"`
			Recipients []struct {
				Address string `json:"address"`
				Reason  string `json:"delay_reason"`
			}
		}
		if err = json.Unmarshal(lines.Bytes(), &m); err != nil {
			break
		}
		delays := make(map[string]string)
		for _, r := range m.Recipients {
			if r.Reason != "" {
				delays[r.Address] = r.Reason
			}
		}
		q.add(m.ID, time.Unix(m.Arrived, 0), delays)
	}
	if err = cmp.Or(err, lines.Err()); err != nil {
		return nil, fmt.Errorf("reading the output of postqueue -j: %w", err)
	}
	return q, nil
}
