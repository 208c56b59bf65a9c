package main

import "time"

const starts = 9

// firstAnswer measures the time from exec to the first answer, with a million
// policies in a file that is in the page cache.
func firstAnswer(b *bench) (result, error) {
	m, err := b.shop.million()
	if err != nil {
		return result{}, err
	}
	var took []float64
	for range starts {
		seconds, err := b.oneStart(m)
		if err != nil {
			return result{}, err
		}
		took = append(took, seconds)
	}
	return several(took, "starts"), nil
}

func (b *bench) oneStart(m *million) (seconds float64, err error) {
	once := &bench{ctx: b.ctx, shop: b.shop}
	defer once.end()
	lab, err := once.startLab()
	if err != nil {
		return 0, err
	}
	d, err := once.startDaemon(daemonConfig{cache: m.path, lab: lab})
	if err != nil {
		return 0, err
	}
	l, err := once.newLoad(d.address, 1)
	if err != nil {
		return 0, err
	}
	request := func(dst []byte, _, _ int) []byte {
		return appendMillionDomain(append(dst, postfixMap...), millionPolicies/3)
	}
	err = l.ask(b.ctx, 1, request, isReplyFor)
	return time.Since(d.Began).Seconds(), err
}
