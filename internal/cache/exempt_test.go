package cache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sts-tlsmap/sts-tlsmap/internal/exempt"
)

func until(day int) time.Time { return time.Date(2026, 11, day, 3, 0, 0, 0, time.UTC) }

func TestExemptionsAreThereAfterOpeningAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := s.Exemptions(); err != nil || len(list) != 0 {
		t.Fatalf("a new file has %v, %v", list, err)
	}
	want := []exempt.Exemption{{Domain: ".below.test", Until: until(1)}, {Domain: "a.test", Until: until(2)}, {Domain: "b.test", Until: until(3)}}
	if err := s.WriteExemptions(want); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteExemptions(want[:2]); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, open := range []func() (*Store, error){
		func() (*Store, error) { return OpenReadOnly(path) },
		func() (*Store, error) { return Open(path, Options{}) },
	} {
		s, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Exemptions(); err != nil || !slices.Equal(got, want[:2]) {
			t.Errorf("%v, %v; want %v", got, err, want[:2])
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestExemptionsAreBounded(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "cache.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var list []exempt.Exemption
	for i := range MaxExemptions + 1 {
		list = append(list, exempt.Exemption{Domain: fmt.Sprintf("d%04d.test", i), Until: until(1)})
	}
	if err := s.WriteExemptions(list); err == nil {
		t.Error("one too many is stored")
	}
	if err := s.WriteExemptions(list[:MaxExemptions]); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Exemptions(); err != nil || !slices.Equal(got, list[:MaxExemptions]) {
		t.Errorf("%d, %v", len(got), err)
	}
	if err := s.WriteExemptions([]exempt.Exemption{{Domain: "", Until: until(1)}}); err == nil {
		t.Error("one without a domain is stored")
	}
}

func TestADamagedExemptionIsOver(t *testing.T) {
	v := encodeExemption(exempt.Exemption{Domain: "a.test", Until: until(1)})
	if x, ok := decodeExemption([]byte("a.test"), v); !ok || !x.Until.Equal(until(1)) {
		t.Errorf("%v, %t", x, ok)
	}
	if _, ok := decodeExemption([]byte("b.test"), v); ok {
		t.Error("another domain's exemption counts")
	}
	for i := range v {
		v[i] ^= 1
		if _, ok := decodeExemption([]byte("a.test"), v); ok {
			t.Errorf("byte %d may be any", i)
		}
		v[i] ^= 1
	}
	if _, ok := decodeExemption([]byte("a.test"), v[:8]); ok {
		t.Error("one without a checksum counts")
	}
}

func TestASalvageCarriesTheExemptionsOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []exempt.Exemption{{Domain: "a.test", Until: until(2)}}
	if err := errors.Join(s.WriteExemptions(want), s.Close()); err != nil {
		t.Fatal(err)
	}
	// One of the two meta pages: the other still shows where all is.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	newest, _ := readMetas(f)
	older := int64(0)
	if m, _ := readMeta(f, 0); m.txid == newest.txid {
		older = int64(newest.pageSize)
	}
	if _, err := f.WriteAt(make([]byte, 64), older); err != nil {
		t.Fatal(err)
	}
	f.Close()

	s, err = Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Stats().Salvage == nil {
		t.Fatal("nothing was salvaged: the test is worth nothing")
	}
	if got, err := s.Exemptions(); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}
