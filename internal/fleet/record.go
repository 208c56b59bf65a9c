package fleet

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A value of the engine, all that it stores for us:
//
//	1 digit     format version
//	8 digits    key id, hexadecimal
//	15 digits   stamp: when the policy was fetched, or the order given; Unix milliseconds
//	fields      each with its length in front (uvarint)
//	32 bytes    HMAC-SHA256 over the type, prefix and key, each with its length in front,
//	            and all of the above
//
// The head is text so that a script can compare stamps. A value whose version or key id is
// unknown counts as absent: a newer program wrote it, or the keys are being changed. A newer
// program writes the older version for one release.
const (
	formatVersion = "1"
	keyIDLength   = 8
	stampLength   = 15
	stampAt       = len(formatVersion) + keyIDLength
	headLength    = stampAt + stampLength
)

const (
	maxKeys  = 2 // in force at once
	keyBytes = 32
)

// A Reason says why a value is not believed.
type Reason string

// The reasons.
const (
	ReasonForged    Reason = "forged"    // the HMAC is wrong
	ReasonTruncated Reason = "truncated" // no complete value
	ReasonUnknown   Reason = "unknown"   // another format version, or a key that is not in key_file
	ReasonAhead     Reason = "ahead"     // stamped more than a minute ahead of our clock
	ReasonInvalid   Reason = "invalid"   // signed, and breaks a rule
	ReasonTooMany   Reason = "too-many"  // more entries than are read
)

// Reasons are all of them.
var Reasons = []Reason{ReasonForged, ReasonTruncated, ReasonUnknown, ReasonAhead, ReasonInvalid, ReasonTooMany}

// A signingKey signs values, and verifies those of others.
type signingKey struct {
	id   string
	macs *sync.Pool // of hash.Hash: to begin anew is cheaper than to begin
}

func newSigningKey(secret []byte) signingKey {
	id := hmac.New(sha256.New, secret)
	id.Write([]byte("key id"))
	return signingKey{hex.EncodeToString(id.Sum(nil))[:keyIDLength], &sync.Pool{New: func() any { return hmac.New(sha256.New, secret) }}}
}

// NewKey makes a key: a line of key_file.
func NewKey() string {
	secret := make([]byte, keyBytes)
	_, _ = rand.Read(secret) // never fails
	return hex.EncodeToString(secret)
}

// readFile reads a file of the configuration. A pipe would stop the daemon's start.
func readFile(path string) ([]byte, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return os.ReadFile(path)
}

// readKeys reads key_file: one key a line, the first signs, all verify.
func readKeys(path string) (keys []signingKey, err error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	for i, line := range strings.Split(string(text), "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		secret, err := hex.DecodeString(line)
		if err != nil || len(secret) != keyBytes {
			return nil, fmt.Errorf("%s:%d: not a key of %d hexadecimal digits; sts-tlsmap -fleet-key makes one", path, i+1, 2*keyBytes)
		}
		keys = append(keys, newSigningKey(secret))
	}
	if len(keys) == 0 || len(keys) > maxKeys {
		return nil, fmt.Errorf("%s has %d keys; expected 1, or 2 while the key is changed", path, len(keys))
	}
	return keys, nil
}

// A value is what was sealed.
type value struct {
	stamp  time.Time
	fields []string
}

func appendField(b []byte, field string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(field))), field...)
}

// seal makes a value of the key (or field of a hash) named name.
func (f *Fleet) seal(kind, name string, stamp time.Time, fields ...string) string {
	b := fmt.Appendf(nil, "%s%s%0*d", formatVersion, f.keys[0].id, stampLength, stamp.UnixMilli())
	for _, field := range fields {
		b = appendField(b, field)
	}
	return string(append(b, f.mac(f.keys[0], kind, name, b)...))
}

func (f *Fleet) mac(key signingKey, kind, name string, body []byte) []byte {
	mac := key.macs.Get().(hash.Hash)
	defer key.macs.Put(mac)
	mac.Reset()
	head := make([]byte, 0, 64+len(f.o.Prefix)+len(name))
	mac.Write(appendField(appendField(appendField(head, kind), f.o.Prefix), name))
	mac.Write(body)
	return mac.Sum(nil)
}

// open returns what was sealed, if it can be believed and has at least so many fields.
// Otherwise it is counted and named, and counts as absent.
func (f *Fleet) open(kind, name, sealed string, fields int) (v value, ok bool) {
	reason, err := f.unseal(kind, name, sealed, fields, &v)
	if err != nil {
		f.refuse(reason, kind+" "+strconv.Quote(name), err)
	}
	return v, err == nil
}

func (f *Fleet) unseal(kind, name, sealed string, fields int, v *value) (Reason, error) {
	if len(sealed) < headLength+sha256.Size {
		return ReasonTruncated, fmt.Errorf("%d bytes are no value", len(sealed))
	}
	body, mac := []byte(sealed[:len(sealed)-sha256.Size]), sealed[len(sealed)-sha256.Size:]
	if sealed[:len(formatVersion)] != formatVersion {
		return ReasonUnknown, fmt.Errorf("format version %q", sealed[:len(formatVersion)])
	}
	id, known := sealed[len(formatVersion):stampAt], false
	for _, key := range f.keys {
		if key.id != id {
			continue
		}
		if known = true; !hmac.Equal(f.mac(key, kind, name, body), []byte(mac)) {
			return ReasonForged, errors.New("the HMAC is wrong")
		}
	}
	if !known {
		return ReasonUnknown, fmt.Errorf("key id %q is not in key_file", id)
	}
	ms, ok := parseInt(sealed[stampAt:headLength])
	if v.stamp = time.UnixMilli(ms); !ok {
		return ReasonInvalid, errors.New("the stamp is no number")
	}
	if ahead := v.stamp.Sub(f.o.Now()); ahead > maxAhead {
		return ReasonAhead, fmt.Errorf("stamped %s ahead of our clock", ahead.Round(time.Second))
	}
	v.fields = make([]string, 0, 4)
	for at := headLength; at < len(body); {
		n, size := binary.Uvarint(body[at:])
		if size <= 0 || n > uint64(len(body)-at-size) {
			return ReasonInvalid, errors.New("a field is longer than the value")
		}
		at += size + int(n)
		v.fields = append(v.fields, sealed[at-int(n):at])
	}
	if len(v.fields) < fields {
		return ReasonInvalid, fmt.Errorf("%d fields; expected %d", len(v.fields), fields)
	}
	return "", nil
}

// parseInt reads decimal digits.
func parseInt(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil
}
