package cache

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/policy"
)

func FuzzValue(f *testing.F) {
	full := record("example.com")
	full.PendingID, full.LastError = "2", "why"
	for _, r := range []*Record{full, record("a.example"), {Domain: "x", Mode: 1}} {
		v, err := encode(r, 7)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(v))
		f.Add([]byte(v[:len(v)-1]))
		f.Add([]byte(v[:headerSize]))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		readable("example.com", raw, errChecksum)
		valueAtFront(raw)
		// Most inputs have a wrong checksum; a right one lets them go further.
		if len(raw) >= headerSize {
			raw = bytes.Clone(raw)
			putChecksum(raw)
		}
		v, err := parse(raw)
		if err != nil {
			return
		}
		r := v.Record()
		if !bytes.Equal(v.Ready(), r.Ready) || string(v.domain()) != r.Domain {
			t.Fatalf("the accessors and the record differ: %+v", r)
		}
		keysOf(v.domain(), v)
		again, err := encode(&r, v.sequence())
		if err != nil {
			return // a value that we would not write: a long error, a mark inside
		}
		if !bytes.Equal(again[offFetched:offFailures+4], v[offFetched:offFailures+4]) || !bytes.Equal(again[headerSize:], v[headerSize:]) {
			t.Fatalf("encoded again it differs:\n%q\n%q", again, v)
		}
	})
}

func TestEveryFieldOfARecordIsStored(t *testing.T) {
	var r Record
	fields := reflect.ValueOf(&r).Elem()
	for i := range fields.NumField() {
		name, f := fields.Type().Field(i).Name, fields.Field(i)
		switch value := f.Addr().Interface().(type) {
		case *string:
			*value = "of " + name
		case *[]byte:
			*value = []byte("of " + name)
		case *time.Time:
			*value = at(time.Duration(i) * time.Hour)
		case *uint32:
			*value = uint32(i)
		case *bool:
			*value = true
		case *policy.Mode:
			*value = policy.ModeTesting
		case *Lane:
			*value = MaxLanes - 1
		default:
			t.Fatalf("%s is of a type that this test does not know", name)
		}
	}
	v, err := encode(&r, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := v.Record(); !reflect.DeepEqual(got, r) {
		t.Errorf("\n got %+v\nwant %+v", got, r)
	}
}

func TestAnyBitFlippedInAValueIsNoticed(t *testing.T) {
	v, err := encode(record("example.com"), 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(v) * 8 {
		bad := bytes.Clone(v)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := parse(bad); err == nil {
			t.Errorf("bit %d of byte %d", i%8, i/8)
		}
	}
	for range 1000 {
		if _, err := parse(v[:rand.IntN(len(v))]); err == nil {
			t.Fatal("a part of it passes for a value")
		}
	}
}

func TestAValueUnderAnotherDomainsKeyIsDamaged(t *testing.T) {
	v, err := encode(record("example.com"), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseAt([]byte("example.org"), v); err == nil {
		t.Error("it passes")
	}
}
