package fleet

import (
	"bufio"
	"bytes"
	"strings"
	"testing"
	"time"
)

// No bytes of the engine end the process, and no reply takes more than its limit.
func FuzzRepliesOfAHostileEngine(f *testing.F) {
	for _, seed := range []string{"$3\r\nabc\r\n", "*2\r\n:1\r\n$-1\r\n", "-ERR x\r\n", "*3\r\n*3\r\n*3\r\n*3\r\n", "$9999999999\r\n", "+\r\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, reply []byte) {
		const limit = 4096
		left := limit
		v, err := readReply(bufio.NewReaderSize(bytes.NewReader(reply), maxLine), &left, 0)
		if err == nil && size(v) > limit {
			t.Errorf("%d bytes", size(v))
		}
	})
}

func size(v any) (n int) {
	switch v := v.(type) {
	case string:
		return len(v)
	case []any:
		for _, x := range v {
			n += element + size(x)
		}
	}
	return n
}

// Whatever is changed in a value, it is not believed.
func FuzzAChangedValueIsNotBelieved(f *testing.F) {
	r := newRelay("r", newFakeEngine(), func(r *relay) { r.o.Now = func() time.Time { return time.Unix(1e9, 0) } })
	sealed := r.seal("p", domain, time.Unix(1e9, 0), "r", "1", strings.Repeat("x", 20))
	f.Add([]byte(sealed))
	f.Add([]byte(sealed[:40]))
	f.Add([]byte("1" + sealed))
	f.Fuzz(func(t *testing.T, changed []byte) {
		var v value
		if _, err := r.unseal("p", domain, string(changed), 3, &v); err == nil && string(changed) != sealed {
			t.Errorf("believed: %q", changed)
		}
	})
}
