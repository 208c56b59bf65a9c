package store

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"github.com/sts-tlsmap/sts-tlsmap/internal/tlsrpt"
)

// A policyHash stands for the text of a policy.
type policyHash [16]byte

const hashSize = len(policyHash{})

func hashOf(policyText []byte) policyHash {
	sum := sha256.Sum256(policyText)
	return policyHash(sum[:])
}

func appendBytes[T ~string | ~[]byte](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func appendPolicy(b []byte, p *tlsrpt.Policy) []byte {
	b = appendBytes(b, p.Type)
	b = appendBytes(b, p.Domain)
	for _, list := range [][]string{p.Strings, p.MXHosts} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, s := range list {
			b = appendBytes(b, s)
		}
	}
	return b
}

func (d *decoder) policy() (p tlsrpt.Policy) {
	p.Type = tlsrpt.PolicyType(d.bytes())
	p.Domain = string(d.bytes())
	for _, list := range []*[]string{&p.Strings, &p.MXHosts} {
		for n := d.uint(); n > 0 && !d.bad; n-- {
			*list = append(*list, string(d.bytes()))
		}
	}
	return p
}

func appendFailure(b []byte, f *tlsrpt.Failure) []byte {
	b = appendBytes(b, f.Result)
	b = appendBytes(b, f.SendingIP.AsSlice())
	b = appendBytes(b, f.MXHost)
	b = appendBytes(b, f.HELO)
	b = appendBytes(b, f.ReceivingIP.AsSlice())
	return appendBytes(b, f.Reason)
}

func (d *decoder) failure() (f tlsrpt.Failure) {
	f.Result = tlsrpt.ResultType(d.bytes())
	f.SendingIP, _ = netip.AddrFromSlice(d.bytes())
	f.MXHost = string(d.bytes())
	f.HELO = string(d.bytes())
	f.ReceivingIP, _ = netip.AddrFromSlice(d.bytes())
	f.Reason = string(d.bytes())
	return f
}

// appendCounts begins the value of a policy's day. Its details follow.
func appendCounts(b []byte, successful, failed uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, successful), failed)
}

func appendDetail(b []byte, d *tlsrpt.Detail) []byte {
	return appendFailure(binary.AppendUvarint(b, d.Sessions), &d.Failure)
}

func (d *decoder) details() (list []tlsrpt.Detail) {
	for len(d.b) > 0 && !d.bad {
		list = append(list, tlsrpt.Detail{Sessions: d.uint(), Failure: d.failure()})
	}
	return list
}

// A decoder reads what the functions above have written. What cannot be read sets bad
// and is zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte { return d.take(d.uint()) }
