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
// the pending id, the last error, the text and the match list. The fields
// that a lookup needs stand at fixed offsets, so that it decodes nothing.
// Integers are little-endian, times are Unix seconds, 0 is the zero time.
//
// The mark at the front holds bytes that no UTF-8 text has, so that salvage
// finds values in a file whose pages it cannot read, and a policy's text can
// never be taken for a value. The sequence tells the newer of two copies.
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
	offCheckAt       = 64
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
	unattendedShift = 4
)

var (
	mark       = []byte("\x00\x01\xffSTS\xfe")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// A Value is a stored policy as it lies in the file. It is valid only as long
// as the call that handed it out says.
type Value []byte

// Mode returns the policy's mode.
func (v Value) Mode() policy.Mode { return policy.Mode(v[offMode]) }

// Fetched returns when the policy was last fetched, in Unix seconds.
func (v Value) Fetched() int64 { return v.time(offFetched) }

// Expires returns when the policy runs out, in Unix seconds.
func (v Value) Expires() int64 { return v.time(offExpires) }

// Checked returns when the TXT record was last seen, in Unix seconds; 0: never.
func (v Value) Checked() int64 { return v.time(offChecked) }

// Used returns the last known use, in Unix seconds; 0: never.
func (v Value) Used() int64 { return v.time(offUsed) }

// MatchList returns the match list, without copying them.
func (v Value) matchList() []byte {
	return v[len(v)-int(binary.LittleEndian.Uint32(v[offMatchLen:])):]
}

// policyLen returns the bytes of the text and of what is ready of it.
func (v Value) policyLen() uint64 {
	return uint64(binary.LittleEndian.Uint32(v[offTextLen:])) + uint64(binary.LittleEndian.Uint32(v[offMatchLen:]))
}

// Record decodes the value. Nothing in the record points into the value.
func (v Value) Record() Record {
	rest := v[headerSize:]
	take := func(n int) []byte {
		b := rest[:n]
		rest = rest[n:]
		return b
	}
	r := Record{
		Domain:        string(take(int(v[offDomainLen]))),
		ID:            string(take(int(v[offIDLen]))),
		PendingID:     string(take(int(v[offPendingLen]))),
		LastError:     string(take(int(binary.LittleEndian.Uint16(v[offErrorLen:])))),
		Text:          bytes.Clone(take(int(binary.LittleEndian.Uint32(v[offTextLen:])))),
		Match:         bytes.Clone(rest),
		Mode:          v.Mode(),
		Lane:          v.lane(),
		Slow:          v[offFlags]&flagSlow != 0,
		Regular:       v[offFlags]&flagRegular != 0,
		Unattended:    v[offFlags] >> unattendedShift,
		Failures:      binary.LittleEndian.Uint32(v[offFailures:]),
		Fetched:       timeOf(v.Fetched()),
		Expires:       timeOf(v.Expires()),
		Checked:       timeOf(v.Checked()),
		Used:          timeOf(v.Used()),
		Due:           timeOf(v.due()),
		FetchAt:       timeOf(v.time(offFetchAt)),
		FetchUnusedAt: timeOf(v.time(offFetchUnusedAt)),
		FailedAt:      timeOf(v.time(offFailedAt)),
	}
	return r
}

func (v Value) time(offset int) int64 { return int64(binary.LittleEndian.Uint64(v[offset:])) }
func (v Value) due() int64            { return v.time(offDue) }
func (v Value) lane() Lane            { return Lane(v[offLane]) }
func (v Value) sequence() uint64      { return binary.LittleEndian.Uint64(v[offSequence:]) }
func (v Value) domain() []byte        { return v[headerSize : headerSize+int(v[offDomainLen])] }

// dueAt returns a copy that is to be checked and fetched at now.
func (v Value) dueAt(now time.Time) Value {
	v = bytes.Clone(v)
	for _, offset := range []int{offDue, offCheckAt, offFetchAt, offFetchUnusedAt} {
		binary.LittleEndian.PutUint64(v[offset:], uint64(secondsOf(now)))
	}
	putChecksum(v)
	return v
}

// newest returns the latest time at which something happened to the policy.
func (v Value) newest() int64 {
	return max(v.Fetched(), v.Checked(), v.time(offFailedAt))
}

var (
	errShort    = errors.New("it is shorter than its header")
	errMark     = errors.New("it does not begin with the mark of a value")
	errVersion  = errors.New("it is of a version that this program does not know")
	errLength   = errors.New("its lengths do not add up")
	errChecksum = errors.New("its checksum is wrong")
	errField    = errors.New("it holds a mode, a lane or a domain that cannot be")
)

// parse checks raw from front to back and returns it as a Value whose
// accessors are safe to call.
func parse(raw []byte) (Value, error) {
	if len(raw) < headerSize {
		return nil, errShort
	}
	if !bytes.HasPrefix(raw, mark) {
		return nil, errMark
	}
	if raw[offVersion] != valueVersion {
		return nil, errVersion
	}
	if len(raw) > MaxValue || lengthOf(raw) != uint64(len(raw)) || lengthField(raw) != uint64(len(raw)) {
		return nil, errLength
	}
	if checksum(raw) != binary.LittleEndian.Uint32(raw[offChecksum:]) {
		return nil, errChecksum
	}
	v := Value(raw)
	if !validMode(v.Mode()) || v.lane() >= maxLanes || len(v.domain()) == 0 || len(v.domain()) > MaxDomain {
		return nil, errField
	}
	return v, nil
}

// parseAt is parse for a value found under the key domain.
func parseAt(domain, raw []byte) (Value, error) {
	v, err := parse(raw)
	if err == nil && !bytes.Equal(v.domain(), domain) {
		return nil, errField
	}
	return v, err
}

// lengthField returns the length of the whole value that the header has.
func lengthField(raw []byte) uint64 { return uint64(binary.LittleEndian.Uint32(raw[offLength:])) }

// lengthOf returns what the lengths in a header add up to.
func lengthOf(raw []byte) uint64 {
	return headerSize + uint64(raw[offDomainLen]) + uint64(raw[offIDLen]) + uint64(raw[offPendingLen]) +
		uint64(binary.LittleEndian.Uint16(raw[offErrorLen:])) +
		uint64(binary.LittleEndian.Uint32(raw[offTextLen:])) +
		uint64(binary.LittleEndian.Uint32(raw[offMatchLen:]))
}

// Storable returns an error if the store cannot take r, whatever room there is.
// One such record in a Write fails the rest of it, too.
func (r *Record) Storable() error {
	_, err := encode(r, 0)
	return err
}

// encode returns the value that stands for r, or an error that says which
// limit r breaks.
func encode(r *Record, sequence uint64) (Value, error) {
	lastError := r.LastError[:min(len(r.LastError), MaxLastError)]
	length := headerSize + len(r.Domain) + len(r.ID) + len(r.PendingID) + len(lastError) + len(r.Text) + len(r.Match)
	switch {
	case len(r.Domain) == 0 || len(r.Domain) > MaxDomain:
		return nil, fmt.Errorf("store a policy: a domain of %d bytes, not 1 to %d", len(r.Domain), MaxDomain)
	case len(r.ID) > MaxID || len(r.PendingID) > MaxID:
		return nil, fmt.Errorf("store the policy of %s: its id is longer than %d bytes", r.Domain, MaxID)
	case !validMode(r.Mode):
		return nil, fmt.Errorf("store the policy of %s: mode %d is none", r.Domain, r.Mode)
	case r.Lane >= maxLanes:
		return nil, fmt.Errorf("store the policy of %s: lane %d of %d", r.Domain, r.Lane, maxLanes)
	case length > MaxValue:
		return nil, fmt.Errorf("store the policy of %s: %d bytes are more than %d", r.Domain, length, MaxValue)
	}
	v := make(Value, headerSize, length)
	copy(v, mark)
	v[offVersion] = valueVersion
	binary.LittleEndian.PutUint32(v[offLength:], uint32(length))
	binary.LittleEndian.PutUint64(v[offSequence:], sequence)
	for _, at := range []struct {
		offset int
		time   time.Time
	}{
		{offFetched, r.Fetched}, {offExpires, r.Expires}, {offChecked, r.Checked}, {offUsed, r.Used},
		{offDue, r.Due}, {offFetchAt, r.FetchAt}, {offFetchUnusedAt, r.FetchUnusedAt},
		{offFailedAt, r.FailedAt},
	} {
		binary.LittleEndian.PutUint64(v[at.offset:], uint64(secondsOf(at.time)))
	}
	binary.LittleEndian.PutUint32(v[offFailures:], r.Failures)
	if r.Slow {
		v[offFlags] |= flagSlow
	}
	if r.Regular {
		v[offFlags] |= flagRegular
	}
	v[offFlags] |= min(r.Unattended, MaxUnattended) << unattendedShift
	v[offMode] = byte(r.Mode)
	v[offLane] = byte(r.Lane)
	v[offDomainLen] = byte(len(r.Domain))
	v[offIDLen] = byte(len(r.ID))
	v[offPendingLen] = byte(len(r.PendingID))
	binary.LittleEndian.PutUint16(v[offErrorLen:], uint16(len(lastError)))
	binary.LittleEndian.PutUint32(v[offTextLen:], uint32(len(r.Text)))
	binary.LittleEndian.PutUint32(v[offMatchLen:], uint32(len(r.Match)))
	v = append(v, r.Domain...)
	v = append(v, r.ID...)
	v = append(v, r.PendingID...)
	v = append(v, lastError...)
	v = append(v, r.Text...)
	v = append(v, r.Match...)
	if bytes.Contains(v[headerSize:], mark) {
		return nil, fmt.Errorf("store the policy of %s: it holds the mark of a stored value", r.Domain)
	}
	putChecksum(v)
	return v, nil
}

func checksum(raw []byte) uint32 { return crc32.Checksum(raw[offLength:], castagnoli) }
func putChecksum(raw []byte)     { binary.LittleEndian.PutUint32(raw[offChecksum:], checksum(raw)) }

// readable returns what a value with a wrong checksum still seems to say. None
// of it may be trusted; it is for people to look at.
func readable(domain string, raw []byte, why error) Record {
	r := Record{Domain: domain, LastError: "the stored policy is damaged: " + why.Error()}
	if len(raw) >= headerSize {
		v := Value(raw)
		if validMode(v.Mode()) {
			r.Mode = v.Mode()
		}
		r.Fetched, r.Expires, r.Checked, r.Used = timeOf(v.Fetched()), timeOf(v.Expires()), timeOf(v.Checked()), timeOf(v.Used())
	}
	return r
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
