package waiting

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	// A message in the output of "exim -bpu": age, size, id and sender.
	eximMessage = regexp.MustCompile(`^ *(\d+)([mhd]) +\S+ +(\w{6}-\w{6,11}-\w{2,4}) <`)
	// An address that waits, in a message's log: "a@x <parent@x> R=r T=t defer (-37): text".
	eximDefer = regexp.MustCompile(`^\S+ \S+ (?:[-+]\d{4} )?(\S+?)(?: <(\S+?)>)?((?: R=\S+)?(?: T=\S+)? defer)(?: \(-?\d+\))?(.*)$`)
)

var eximAge = map[string]time.Duration{"m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}

// ReadExim reads the output of "exim -bpru", a message and the addresses that wait. The
// reasons are in the message logs in the spool directory.
func ReadExim(queue io.Reader, spool fs.FS, now time.Time) (*Queue, error) {
	q := &Queue{MTA: Exim, byCause: make(map[groupKey]*Group)}
	var id string
	var arrived time.Time
	waits := make(map[string]bool)
	next := func() error {
		if id == "" {
			return nil
		}
		delays, err := eximDelays(spool, id, waits)
		q.add(id, arrived, delays)
		clear(waits)
		return err
	}
	lines := bufio.NewScanner(queue) // of 64 KiB at most
	for lines.Scan() {
		if m := eximMessage.FindStringSubmatch(lines.Text()); m != nil {
			if err := next(); err != nil {
				return nil, err
			}
			n, _ := strconv.Atoi(m[1])
			id, arrived = m[3], now.Add(-time.Duration(n)*eximAge[m[2]])
		} else if address := strings.TrimSpace(lines.Text()); address != "" && len(waits) < maxGroups {
			waits[strings.ToLower(address)] = true
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading Exim's queue: %w", err)
	}
	return q, next()
}

// eximDelays returns the last reason why each address of a message waits. A log that
// is not there has no reasons: the message was not tried yet, or message_logs is off.
func eximDelays(spool fs.FS, id string, waits map[string]bool) (map[string]string, error) {
	log, err := spool.Open("msglog/" + id)
	if errors.Is(err, fs.ErrNotExist) { // split_spool_directory
		log, err = spool.Open("msglog/" + id[5:6] + "/" + id)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var lines []byte
	if err == nil {
		defer log.Close()
		if s, ok := log.(io.Seeker); ok {
			_, _ = s.Seek(-maxLog, io.SeekEnd) // in a shorter one it changes nothing
		}
		lines, err = io.ReadAll(io.LimitReader(log, maxLog))
	}
	if err != nil {
		return nil, fmt.Errorf("reading a message log: %w", err)
	}
	last := make(map[string]string)
	for line := range strings.Lines(string(lines)) {
		m := eximDefer.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			continue
		}
		address, reason := strings.ToLower(m[1]), strings.TrimSpace(m[3])+m[4]
		putOff := strings.Contains(reason, "retry time not reached")
		if !waits[address] && !waits[strings.ToLower(m[2])] || putOff && last[address] != "" {
			continue // it went out since, or the earlier reason says more
		}
		last[address] = reason
	}
	return last, nil
}
