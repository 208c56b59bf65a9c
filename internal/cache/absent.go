package cache

import "bytes"

// absent explains why get has found no key: it returns nil if the pages around
// the place where it would be are sound, and else what is wrong with them. A bit
// flipped in a key makes a policy hard to find, and get, which compares a few
// keys only, does not see that. What is not found is looked for in the network
// next, so there is time to look twice.
//
// sound checks one element of the leaf, beyond what all pages must be.
func (t *tree) absent(key []byte, sound func(k, v []byte) bool) error {
	p, err := t.rootPage()
	if err != nil {
		return err
	}
	var left, right uint64 // the subtrees beside the path; 0: none
	for range maxDepth {
		if err := p.whole(t.limit); err != nil {
			return err
		}
		i, found, err := p.search(key)
		if err != nil {
			return err
		}
		if p.leaf() {
			if found {
				return &pageError{p.id(), "has a bucket in the place of a value"}
			}
			return t.absentFromLeaf(p, i, key, left, right, sound)
		}
		if !found && i > 0 {
			i--
		}
		if i > 0 {
			left = p.child(i - 1)
		}
		if i+1 < p.count() {
			right = p.child(i + 1)
		}
		if p, err = t.at(p.child(i)); err != nil {
			return err
		}
	}
	return &pageError{t.root, "is the root of pages that run in a circle"}
}

// absentFromLeaf checks the leaf p, in which key would be at index i. At either
// end the neighbour must not hold it: the branch above may have led astray.
func (t *tree) absentFromLeaf(p page, i int, key []byte, left, right uint64, sound func(k, v []byte) bool) error {
	for j := range p.count() {
		k, err := p.key(j)
		if err != nil {
			return err
		}
		v, _, err := p.value(j)
		if err != nil {
			return err
		}
		if !sound(k, v) {
			return &pageError{p.id(), "has a value under a key that is not its own"}
		}
	}
	if i == 0 && left != 0 {
		if k, err := t.edge(left, true); err != nil || bytes.Compare(k, key) >= 0 {
			return orElse(err, &pageError{left, "reaches too far to the right"})
		}
	}
	if i == p.count() && right != 0 {
		if k, err := t.edge(right, false); err != nil || bytes.Compare(k, key) <= 0 {
			return orElse(err, &pageError{right, "reaches too far to the left"})
		}
	}
	return nil
}

// edge returns the first or last key below the page id.
func (t *tree) edge(id uint64, last bool) ([]byte, error) {
	for range maxDepth {
		p, err := t.at(id)
		if err != nil {
			return nil, err
		}
		if p.count() == 0 {
			return nil, &pageError{id, "is empty"}
		}
		i := 0
		if last {
			i = p.count() - 1
		}
		if p.leaf() {
			return p.key(i)
		}
		id = p.child(i)
	}
	return nil, &pageError{id, "is below pages that run in a circle"}
}

func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// underOwnDomain reports whether v may stand under the key k: it is of that
// domain, or it is damaged, which is another matter.
func underOwnDomain(k, v []byte) bool {
	if len(v) >= headerSize && lengthOf(v) == uint64(len(v)) && bytes.Equal(Value(v).domain(), k) {
		return true
	}
	_, err := parse(v)
	return err != nil && len(v) > 0
}
