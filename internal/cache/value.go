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

// A header is the front of a stored value: little-endian, with times in Unix
// seconds; 0 is the zero time. The fields of a value stand behind it.
type header struct {
	Mark                 [7]byte // see mark
	Version              uint8
	Checksum             uint32 // CRC-32C of all that follows it
	Length               uint32 // of the whole value
	Sequence             uint64 // of the transaction that wrote it: tells the newer of two copies
	Fetched, Expires     int64
	Checked, Used, Due   int64
	Reserved             int64 // old versions kept the next TXT lookup here
	FetchAt, FetchUnused int64
	FailedAt             int64
	Failures             uint32
	Mode, Lane           uint8
	DomainLen            uint8
	IDLen, PendingLen    uint8
	Flags                uint8 // see below; the upper four bits are Record.Unattended
	ErrorLen             uint16
	TextLen, MatchLen    uint32
}

const (
	headerSize   = 116
	checksummed  = 12 // where the checksum's bytes begin
	valueVersion = 1

	flagSlow        = 1 << 0
	flagRegular     = 1 << 1
	flagTombstone   = 1 << 2 // stands for a policy that is held and cannot be read
	unattendedShift = 4
)

// By the mark a salvage finds values without reading pages. The mark has bytes that
// UTF-8 never has, so no policy text can contain it.
var (
	mark       = [7]byte{0, 1, 0xff, 'S', 'T', 'S', 0xfe}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// A value is a stored policy. Its fields may point into the file, and are then
// valid as long as the transaction.
type value struct {
	header
	domain, id, pending, lastError, text, match []byte
}

// read decodes the front of a stored value, and reports whether raw is long enough.
// Each lookup reads one, and the reflection of encoding/binary would take a fifth of
// the time of reading the store.
func (h *header) read(raw []byte) bool {
	if len(raw) < headerSize {
		return false
	}
	le := binary.LittleEndian
	copy(h.Mark[:], raw)
	h.Version, h.Checksum, h.Length, h.Sequence = raw[7], le.Uint32(raw[8:]), le.Uint32(raw[12:]), le.Uint64(raw[16:])
	for i, to := range [...]*int64{&h.Fetched, &h.Expires, &h.Checked, &h.Used, &h.Due, &h.Reserved, &h.FetchAt, &h.FetchUnused, &h.FailedAt} {
		*to = int64(le.Uint64(raw[24+8*i:]))
	}
	h.Failures, h.Mode, h.Lane, h.DomainLen = le.Uint32(raw[96:]), raw[100], raw[101], raw[102]
	h.IDLen, h.PendingLen, h.Flags, h.ErrorLen = raw[103], raw[104], raw[105], le.Uint16(raw[106:])
	h.TextLen, h.MatchLen = le.Uint32(raw[108:]), le.Uint32(raw[112:])
	return true
}

// fields returns the fields in the order in which they are stored.
func (v *value) fields() [6]*[]byte {
	return [...]*[]byte{&v.domain, &v.id, &v.pending, &v.lastError, &v.text, &v.match}
}

func (v *value) size() int {
	n := headerSize
	for _, f := range v.fields() {
		n += len(*f)
	}
	return n
}

func (v *value) has(flag uint8) bool { return v.Flags&flag != 0 }

// parse checks raw, which is stored under domain, from front to back.
func parse(domain, raw []byte) (*value, error) {
	v, err := parseAny(raw)
	if err == nil && !bytes.Equal(v.domain, domain) {
		err = errors.New("it is the policy of another domain")
	}
	return v, err
}

func parseAny(raw []byte) (*value, error) {
	v := new(value)
	if !v.read(raw) {
		return nil, errors.New("it is shorter than its header")
	}
	if v.Mark != mark || v.Version != valueVersion {
		return nil, errors.New("it does not begin with the mark and version of a value")
	}
	rest := raw[headerSize:]
	for i, n := range [...]int{int(v.DomainLen), int(v.IDLen), int(v.PendingLen), int(v.ErrorLen), int(v.TextLen), int(v.MatchLen)} {
		if n > len(rest) {
			return nil, errors.New("its lengths do not add up")
		}
		*v.fields()[i], rest = rest[:n], rest[n:]
	}
	if len(rest) > 0 || len(raw) > MaxValue || int(v.Length) != len(raw) || crc32.Checksum(raw[checksummed:], castagnoli) != v.Checksum {
		return nil, errors.New("its checksum is wrong")
	}
	if !validMode(v.Mode) || v.Lane >= maxLanes || v.DomainLen == 0 || v.DomainLen > MaxDomain {
		return nil, errors.New("it has an impossible mode, lane or domain")
	}
	return v, nil
}

// bytes returns the value as it is stored.
func (v *value) bytes(sequence uint64) []byte {
	v.Sequence, v.Length = sequence, uint32(v.size())
	raw := encoded(&v.header)
	for _, f := range v.fields() {
		raw = append(raw, *f...)
	}
	binary.LittleEndian.PutUint32(raw[8:], crc32.Checksum(raw[checksummed:], castagnoli))
	return raw
}

// record returns the record, which does not point into the value.
func (v *value) record() Record {
	return Record{
		Domain: string(v.domain), ID: string(v.id), PendingID: string(v.pending), Mode: policy.Mode(v.Mode),
		Text: bytes.Clone(v.text), Match: bytes.Clone(v.match),
		Fetched: timeOf(v.Fetched), Expires: timeOf(v.Expires), Checked: timeOf(v.Checked), Used: timeOf(v.Used),
		Regular: v.has(flagRegular), Slow: v.has(flagSlow), Unattended: v.Flags >> unattendedShift,
		FetchAt: timeOf(v.FetchAt), FetchUnusedAt: timeOf(v.FetchUnused),
		Failures: v.Failures, FailedAt: timeOf(v.FailedAt), LastError: string(v.lastError),
		Lane: laneOf(v.Lane), Due: timeOf(v.Due),
	}
}

// Storable returns an error if no store can take r, full or empty. One such
// record in a Write makes all of it fail.
func (r *Record) Storable() error {
	_, err := valueOf(r)
	return err
}

// valueOf returns the value for r, or an error that names the limit that r breaks.
func valueOf(r *Record) (*value, error) {
	v := &value{
		domain: []byte(r.Domain), id: []byte(r.ID), pending: []byte(r.PendingID),
		lastError: []byte(r.LastError[:min(len(r.LastError), MaxLastError)]), text: r.Text, match: r.Match,
	}
	v.header = header{
		Mark: mark, Version: valueVersion,
		Fetched: secondsOf(r.Fetched), Expires: secondsOf(r.Expires), Checked: secondsOf(r.Checked), Used: secondsOf(r.Used),
		Due: secondsOf(r.Due), FetchAt: secondsOf(r.FetchAt), FetchUnused: secondsOf(r.FetchUnusedAt),
		FailedAt: secondsOf(r.FailedAt), Failures: r.Failures, Mode: uint8(r.Mode), Lane: uint8(r.Lane),
		DomainLen: uint8(len(v.domain)), IDLen: uint8(len(v.id)), PendingLen: uint8(len(v.pending)),
		ErrorLen: uint16(len(v.lastError)), TextLen: uint32(len(v.text)), MatchLen: uint32(len(v.match)),
		Flags: min(r.Unattended, MaxUnattended) << unattendedShift,
	}
	if r.Slow {
		v.Flags |= flagSlow
	}
	if r.Regular {
		v.Flags |= flagRegular
	}
	var wrong string
	switch size := v.size(); {
	case len(r.Domain) == 0 || len(r.Domain) > MaxDomain:
		wrong = fmt.Sprintf("its domain has %d bytes, not 1 to %d", len(r.Domain), MaxDomain)
	case len(r.ID) > MaxID || len(r.PendingID) > MaxID:
		wrong = fmt.Sprintf("its id is longer than %d bytes", MaxID)
	case !validMode(v.Mode):
		wrong = fmt.Sprintf("there is no mode %d", r.Mode)
	case r.Lane != LaneQuiet && r.Lane != LaneNormal && r.Lane != LaneTroubled:
		wrong = fmt.Sprintf("there is no lane %d", r.Lane)
	case size > MaxValue:
		wrong = fmt.Sprintf("%d bytes are more than %d", size, MaxValue)
	case bytes.Contains(v.bytes(0)[headerSize:], mark[:]):
		wrong = "it holds the mark of a stored value"
	default:
		return v, nil
	}
	return nil, fmt.Errorf("store the policy of %.*q: %s", MaxDomain, r.Domain, wrong)
}

// newTombstone returns the value that replaces a held policy that cannot be read. It
// is due at once, and deleted after a week, because mail waits meanwhile.
func newTombstone(domain []byte, now int64) *value {
	t := timeOf(now)
	v, err := valueOf(&Record{
		Domain: string(domain), Mode: policy.ModeEnforce, LastError: errTombstone.Error(),
		Used: t, Expires: t.Add(7 * 24 * time.Hour), Lane: LaneNormal, Due: t, FetchAt: t, FetchUnusedAt: t,
	})
	if err != nil {
		return nil
	}
	v.Flags |= flagTombstone
	return v
}

var errTombstone = errors.New("the stored policy was damaged, and could not be fetched again so far")

func validMode(m uint8) bool {
	return policy.Mode(m) >= policy.ModeNone && policy.Mode(m) <= policy.ModeEnforce
}

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
