package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

// A stored value is a header of fixed size and, behind it, the domain, the id,
// the pending id, the last error, the text and the match list. Integers are
// little-endian, times are Unix seconds, 0 is the zero time.
//
// The mark at the front has bytes that no UTF-8 text has, so that a salvage finds
// values in a file whose pages it cannot read, and the text of a policy is never
// taken for a value. The sequence tells which of two copies is the newer one.
const (
	offVersion       = 7
	offChecksum      = 8  // uint32: CRC-32C of all that follows it
	offLength        = 12 // uint32: of the whole value
	offSequence      = 16 // uint64
	offFetched       = 24
	offExpires       = 32
	offChecked       = 40
	offUsed          = 48
	offDue           = 56
	offReserved      = 64 // uint64: old versions kept the next TXT lookup here
	offFetchAt       = 72
	offFetchUnusedAt = 80
	offFailedAt      = 88
	offFailures      = 96  // uint32
	offMode          = 100 // uint8
	offLane          = 101 // uint8
	offDomainLen     = 102 // uint8
	offIDLen         = 103 // uint8
	offPendingLen    = 104 // uint8
	offFlags         = 105 // uint8
	offErrorLen      = 106 // uint16
	offTextLen       = 108 // uint32
	offMatchLen      = 112 // uint32
	headerSize       = 116
)

const valueVersion = 1

// The flags. The upper four bits are Record.Unattended.
const (
	flagSlow        = 1 << 0
	flagRegular     = 1 << 1
	flagTombstone   = 1 << 2 // stands for a policy that cannot be read
	unattendedShift = 4
)

var (
	mark       = []byte("\x00\x01\xffSTS\xfe")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// A value is a stored policy whose header and lengths were checked by parse. It
// may point into the file, and is then valid as long as the transaction.
type value []byte

func (v value) mode() policy.Mode       { return policy.Mode(v[offMode]) }
func (v value) time(offset int) int64   { return int64(binary.LittleEndian.Uint64(v[offset:])) }
func (v value) size32(offset int) int   { return int(binary.LittleEndian.Uint32(v[offset:])) }
func (v value) sequence() uint64        { return binary.LittleEndian.Uint64(v[offSequence:]) }
func (v value) domain() []byte          { return v[headerSize : headerSize+int(v[offDomainLen])] }
func (v value) match() []byte           { return v[len(v)-v.size32(offMatchLen):] }
func (v value) text() []byte            { return v[len(v)-v.policySize():][:v.size32(offTextLen)] }
func (v value) policySize() int         { return v.size32(offTextLen) + v.size32(offMatchLen) }
func (v value) has(flag byte) bool      { return v[offFlags]&flag != 0 }
func (v value) put(offset int, n int64) { binary.LittleEndian.PutUint64(v[offset:], uint64(n)) }

// seal sets the sequence and the checksum.
func (v value) seal(sequence uint64) {
	binary.LittleEndian.PutUint64(v[offSequence:], sequence)
	binary.LittleEndian.PutUint32(v[offChecksum:], checksum(v))
}

func checksum(raw []byte) uint32 { return crc32.Checksum(raw[offLength:], castagnoli) }

// Record decodes the value. The record does not point into the value.
func (v value) record() Record {
	rest := v[headerSize:]
	take := func(n int) []byte {
		b := rest[:n]
		rest = rest[n:]
		return b
	}
	return Record{
		Domain:        string(take(int(v[offDomainLen]))),
		ID:            string(take(int(v[offIDLen]))),
		PendingID:     string(take(int(v[offPendingLen]))),
		LastError:     string(take(int(binary.LittleEndian.Uint16(v[offErrorLen:])))),
		Text:          bytes.Clone(v.text()),
		Match:         bytes.Clone(v.match()),
		Mode:          v.mode(),
		Lane:          laneOf(v[offLane]),
		Slow:          v.has(flagSlow),
		Regular:       v.has(flagRegular),
		Unattended:    v[offFlags] >> unattendedShift,
		Failures:      uint32(v.size32(offFailures)),
		Fetched:       timeOf(v.time(offFetched)),
		Expires:       timeOf(v.time(offExpires)),
		Checked:       timeOf(v.time(offChecked)),
		Used:          timeOf(v.time(offUsed)),
		Due:           timeOf(v.time(offDue)),
		FetchAt:       timeOf(v.time(offFetchAt)),
		FetchUnusedAt: timeOf(v.time(offFetchUnusedAt)),
		FailedAt:      timeOf(v.time(offFailedAt)),
	}
}

// What may be wrong with a stored value.
var (
	errShort     = errors.New("it is shorter than its header")
	errMark      = errors.New("it does not begin with the mark of a value")
	errVersion   = errors.New("its version is not known to this program")
	errLength    = errors.New("its lengths do not add up")
	errChecksum  = errors.New("its checksum is wrong")
	errTombstone = errors.New("it was damaged, and could not be fetched again so far")
	errField     = errors.New("it has an impossible mode, lane or domain")
)

// parse checks raw from front to back and returns it as a value.
func parse(raw []byte) (value, error) {
	switch {
	case len(raw) < headerSize:
		return nil, errShort
	case !bytes.HasPrefix(raw, mark):
		return nil, errMark
	case raw[offVersion] != valueVersion:
		return nil, errVersion
	}
	v := value(raw)
	sum := headerSize + int(v[offDomainLen]) + int(v[offIDLen]) + int(v[offPendingLen]) +
		int(binary.LittleEndian.Uint16(v[offErrorLen:])) + v.policySize()
	switch {
	case len(v) > MaxValue || sum != len(v) || v.size32(offLength) != len(v):
		return nil, errLength
	case checksum(v) != binary.LittleEndian.Uint32(v[offChecksum:]):
		return nil, errChecksum
	case !validMode(v.mode()) || v[offLane] >= maxLanes || len(v.domain()) == 0 || len(v.domain()) > MaxDomain:
		return nil, errField
	}
	return v, nil
}

// parseAt is parse for a value that is stored under domain.
func parseAt(domain, raw []byte) (value, error) {
	v, err := parse(raw)
	if err == nil && !bytes.Equal(v.domain(), domain) {
		return nil, errField
	}
	return v, err
}

// Storable returns an error if no store can take r, full or empty. One such
// record in a Write makes all of it fail.
func (r *Record) Storable() error {
	_, err := encode(r)
	return err
}

// encode returns the value for r, not sealed yet, or an error that names the
// limit that r breaks.
func encode(r *Record) (value, error) {
	lastError := r.LastError[:min(len(r.LastError), MaxLastError)]
	length := headerSize + len(r.Domain) + len(r.ID) + len(r.PendingID) + len(lastError) + len(r.Text) + len(r.Match)
	switch {
	case len(r.Domain) == 0 || len(r.Domain) > MaxDomain:
		return nil, fmt.Errorf("store a policy: its domain has %d bytes, not 1 to %d", len(r.Domain), MaxDomain)
	case len(r.ID) > MaxID || len(r.PendingID) > MaxID:
		return nil, fmt.Errorf("store the policy of %s: its id is longer than %d bytes", r.Domain, MaxID)
	case !validMode(r.Mode):
		return nil, fmt.Errorf("store the policy of %s: there is no mode %d", r.Domain, r.Mode)
	case r.Lane != LaneQuiet && r.Lane != LaneNormal && r.Lane != LaneTroubled:
		return nil, fmt.Errorf("store the policy of %s: there is no lane %d", r.Domain, r.Lane)
	case length > MaxValue:
		return nil, fmt.Errorf("store the policy of %s: %d bytes are more than %d", r.Domain, length, MaxValue)
	}
	v := make(value, headerSize, length)
	copy(v, mark)
	v[offVersion] = valueVersion
	binary.LittleEndian.PutUint32(v[offLength:], uint32(length))
	for _, f := range []struct {
		offset int
		time   time.Time
	}{
		{offFetched, r.Fetched}, {offExpires, r.Expires}, {offChecked, r.Checked}, {offUsed, r.Used}, {offDue, r.Due},
		{offFetchAt, r.FetchAt}, {offFetchUnusedAt, r.FetchUnusedAt}, {offFailedAt, r.FailedAt},
	} {
		v.put(f.offset, secondsOf(f.time))
	}
	binary.LittleEndian.PutUint32(v[offFailures:], r.Failures)
	v[offFlags] = min(r.Unattended, MaxUnattended) << unattendedShift
	if r.Slow {
		v[offFlags] |= flagSlow
	}
	if r.Regular {
		v[offFlags] |= flagRegular
	}
	v[offMode], v[offLane] = byte(r.Mode), byte(r.Lane)
	v[offDomainLen], v[offIDLen], v[offPendingLen] = byte(len(r.Domain)), byte(len(r.ID)), byte(len(r.PendingID))
	binary.LittleEndian.PutUint16(v[offErrorLen:], uint16(len(lastError)))
	binary.LittleEndian.PutUint32(v[offTextLen:], uint32(len(r.Text)))
	binary.LittleEndian.PutUint32(v[offMatchLen:], uint32(len(r.Match)))
	for _, s := range []string{r.Domain, r.ID, r.PendingID, lastError} {
		v = append(v, s...)
	}
	v = append(append(v, r.Text...), r.Match...)
	// Nobody's text may be taken for a value by a salvage.
	if bytes.Contains(v[headerSize:], mark) {
		return nil, fmt.Errorf("store the policy of %s: it holds the mark of a stored value", r.Domain)
	}
	return v, nil
}

// tombstoneLife, in seconds, is how long mail may wait for a policy that is held
// and cannot be read.
const tombstoneLife = 7 * secondsPerDay

// newTombstone returns what is stored in the place of a policy that cannot be
// read because of why: a record that is damaged on purpose, and due at once.
func newTombstone(domain []byte, why error, now int64) change {
	v, err := encode(&Record{
		Domain: string(domain), Mode: policy.ModeEnforce, LastError: "the stored policy was damaged: " + why.Error(),
		Used: timeOf(now), Expires: timeOf(now + tombstoneLife), Lane: LaneNormal, Due: timeOf(now), FetchAt: timeOf(now), FetchUnusedAt: timeOf(now),
	})
	if err == nil {
		v[offFlags] |= flagTombstone
	}
	return change{domain, v}
}

func validMode(m policy.Mode) bool { return m >= policy.ModeNone && m <= policy.ModeEnforce }

func secondsOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func timeOf(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}
