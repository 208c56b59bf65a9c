package dane

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

func TestRFC7672_3_1_UsableRecords(t *testing.T) {
	sha256, sha512 := strings.Repeat("ab", 32), strings.Repeat("ab", 64)
	der := hex.EncodeToString([]byte{0x30, 3, 2, 1, 5})
	right := map[uint8][]string{0: {der}, 1: {sha256}, 2: {sha512}}
	data := []string{"", "00", "3000", "3003020105ff", "30030201", "020105", sha256[2:], sha256 + "00", sha256, sha512[2:], sha512, der}
	for usage := range uint8(6) {
		for selector := range uint8(4) {
			for matching := range uint8(5) {
				for _, d := range data {
					b, err := hex.DecodeString(d)
					if err != nil {
						t.Fatal(err)
					}
					want := (usage == 2 || usage == 3) && selector <= 1 && len(right[matching]) > 0 && d == right[matching][0]
					rr := resolver.TLSA{Usage: usage, Selector: selector, MatchingType: matching, Data: b}
					if UsableRecord(rr) != want {
						t.Errorf("%d %d %d %q: usable %v, want %v", usage, selector, matching, d, !want, want)
					}
				}
			}
		}
	}
	if UsableRecord(resolver.TLSA{Usage: 255, Selector: 1, MatchingType: 1, Data: make([]byte, 32)}) {
		t.Error("usage 255 is private")
	}
}
