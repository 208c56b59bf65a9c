package testlab

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sts-tlsmap/sts-tlsmap/internal/resolver"
)

// Answer returns a resolver's answer with records of the given data in
// zone-file form; the data of a TXT record is its bare text. It panics on
// invalid data.
func Answer(name string, t resolver.Type, data ...string) *resolver.Answer {
	a := &resolver.Answer{Name: name}
	for _, d := range data {
		fields := strings.Fields(d)
		switch t {
		case resolver.TypeTXT:
			a.Texts = append(a.Texts, d)
		case resolver.TypeA, resolver.TypeAAAA:
			a.Addrs = append(a.Addrs, netip.MustParseAddr(d))
		case resolver.TypeMX:
			host := strings.ToLower(fields[1])
			if host != "." {
				host = strings.TrimSuffix(host, ".")
			}
			a.MX = append(a.MX, resolver.MX{Host: host, Preference: uint16(number(fields[0], 16))})
		case resolver.TypeTLSA:
			b, err := hex.DecodeString(strings.Join(fields[3:], ""))
			if err != nil {
				panic(err)
			}
			a.TLSA = append(a.TLSA, resolver.TLSA{
				Usage: uint8(number(fields[0], 8)), Selector: uint8(number(fields[1], 8)), MatchingType: uint8(number(fields[2], 8)), Data: b,
			})
		default:
			a.Other = append(a.Other, d)
		}
	}
	return a
}

func number(s string, bits int) uint64 {
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		panic(fmt.Sprintf("a number in a record: %v", err))
	}
	return n
}
