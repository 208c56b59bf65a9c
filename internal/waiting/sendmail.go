package waiting

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

var (
	// A message in the output of "sendmail -bp -v": id, its state, size, priority, time
	// and sender.
	sendmailMessage = regexp.MustCompile(`^(\w{12,})\S* +\d+ +-?\d+\+? +(\w{3} +\d+ \d\d:\d\d) `)
	sendmailReason  = regexp.MustCompile(`^\s+\((.*)\)$`)
	sendmailAddress = regexp.MustCompile(`^\t{3,}<?([^\s<>]+)>?$`)
)

// ReadSendmail reads the output of "sendmail -bp -v": of each message why it waits, and
// the recipients, with a reason of their own or not. The times have no year.
func ReadSendmail(queue io.Reader, now time.Time) (*Queue, error) {
	q := &Queue{MTA: Sendmail, maps: "sts", byCause: make(map[groupKey]*Group)}
	var id, reason, address string
	var arrived time.Time
	recipients, delays := 0, make(map[string]string)
	next := func() {
		if recipients == 1 && reason != "" {
			delays[address] = reason // the recipient's own is the same, cut at 100 bytes
		}
		if id != "" {
			q.add(id, arrived, delays)
		}
		reason, address, recipients = "", "", 0
		clear(delays)
	}
	lines := bufio.NewScanner(queue) // of 64 KiB at most
	for lines.Scan() {
		if m := sendmailMessage.FindStringSubmatch(lines.Text()); m != nil {
			next()
			id = m[1]
			arrived, _ = time.ParseInLocation("2006 Jan _2 15:04", fmt.Sprint(now.Year(), " ", m[2]), now.Location())
			if arrived.After(now.Add(24 * time.Hour)) {
				arrived = arrived.AddDate(-1, 0, 0)
			}
		} else if m := sendmailAddress.FindStringSubmatch(lines.Text()); m != nil {
			address = m[1]
			recipients++
		} else if m := sendmailReason.FindStringSubmatch(lines.Text()); m != nil && address != "" && len(delays) < maxGroups {
			delays[address] = m[1]
		} else if m != nil {
			reason = strings.TrimSpace(m[1])
		}
	}
	next()
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading sendmail's queue: %w", err)
	}
	return q, nil
}
