package cache

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// This file reads the pages of a bbolt file, and only reads them; bbolt itself
// does all the writing. Why not read through bbolt as well:
//
//   - bbolt panics on a damaged page, and a panic in DB.Begin leaves its meta
//     lock taken: every later transaction would wait for ever. Here a damaged
//     page is an error.
//   - bbolt descends by recursion. Pages that form a circle end in a stack
//     overflow, which no one can recover. Here depth is bounded.
//   - salvage must step over a bad page and read on behind it.
//   - a lookup allocates nothing.
//
// The format is bbolt's version 2: integers in the machine's byte order; a page
// header (id, flags, count, overflow), then elements that say where, counted
// from themselves, their key and value are.

const (
	pageHeader  = 16
	elementSize = 16

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10

	flagBucket = 0x01 // of a leaf's element: its value is a bucket

	bucketHeader = 16 // root page, sequence; a small bucket's page follows it
	firstPage    = 2  // 0 and 1 are the meta pages

	// maxDepth bounds a descent. A tree of a billion keys is 6 deep.
	maxDepth = 16
)

var native = binary.NativeEndian

// A pageError says what is wrong with a page.
type pageError struct {
	id   uint64
	what string
}

func (e *pageError) Error() string { return fmt.Sprintf("page %d %s", e.id, e.what) }

// pages are the pages of one state of the file.
type pages struct {
	data  []byte // the mapped file; what lies behind the file's end faults
	size  uint64 // of a page, in bytes
	limit uint64 // number of pages
}

// A page is a branch or leaf page with its overflow, checked as far as its
// header goes.
type page []byte

func (p pages) at(id uint64) (page, error) {
	if id < firstPage || id >= p.limit || (id+1)*p.size > uint64(len(p.data)) {
		return nil, &pageError{id, "is outside the file"}
	}
	head := p.data[id*p.size:][:p.size]
	if native.Uint64(head) != id {
		return nil, &pageError{id, "bears another page's number"}
	}
	end := id + 1 + uint64(native.Uint32(head[12:]))
	if end > p.limit || end*p.size > uint64(len(p.data)) {
		return nil, &pageError{id, "runs over the file's end"}
	}
	return checkPage(id, page(p.data[id*p.size:end*p.size]))
}

// checkPage checks what the header says of the page itself. A bucket kept in
// its parent has a page without a number: id is 0.
func checkPage(id uint64, p page) (page, error) {
	if len(p) < pageHeader {
		return nil, &pageError{id, "is too short"}
	}
	if f := native.Uint16(p[8:]); f != flagBranch && f != flagLeaf {
		return nil, &pageError{id, fmt.Sprintf("is neither branch nor leaf (flags %#x)", f)}
	}
	if pageHeader+p.count()*elementSize > len(p) {
		return nil, &pageError{id, "has more elements than fit"}
	}
	if !p.leaf() && p.count() == 0 {
		return nil, &pageError{id, "is a branch without children"}
	}
	return p, nil
}

func (p page) id() uint64 { return native.Uint64(p) }
func (p page) leaf() bool { return native.Uint16(p[8:]) == flagLeaf }
func (p page) count() int { return int(native.Uint16(p[10:])) }

// element returns where the key of element i begins and ends, counted from the
// page's start.
func (p page) key(i int) ([]byte, error) {
	at := uint64(pageHeader + i*elementSize)
	var pos, length uint64
	if e := p[at:][:elementSize]; p.leaf() {
		pos, length = uint64(native.Uint32(e[4:])), uint64(native.Uint32(e[8:]))
	} else {
		pos, length = uint64(native.Uint32(e)), uint64(native.Uint32(e[4:]))
	}
	if at+pos+length > uint64(len(p)) {
		return nil, &pageError{p.id(), "has a key outside itself"}
	}
	return p[at+pos:][:length:length], nil
}

// child returns the page number that element i of a branch points to.
func (p page) child(i int) uint64 {
	return native.Uint64(p[pageHeader+i*elementSize+8:])
}

// valueOffset returns where the value of element i of a leaf begins, counted
// from the page's start.
func (p page) valueOffset(i int) uint64 {
	at := uint64(pageHeader + i*elementSize)
	e := p[at:][:elementSize]
	return at + uint64(native.Uint32(e[4:])) + uint64(native.Uint32(e[8:]))
}

// value returns the value of element i of a leaf and whether it is a bucket.
func (p page) value(i int) (v []byte, bucket bool, err error) {
	e := p[pageHeader+i*elementSize:][:elementSize]
	from, length := p.valueOffset(i), uint64(native.Uint32(e[12:]))
	if from+length > uint64(len(p)) {
		return nil, false, &pageError{p.id(), "has a value outside itself"}
	}
	return p[from:][:length:length], native.Uint32(e)&flagBucket != 0, nil
}

// whole checks every element of the page: that it lies inside, that the keys
// rise, that children are pages.
func (p page) whole(limit uint64) error {
	var last []byte
	for i := range p.count() {
		k, err := p.key(i)
		if err != nil {
			return err
		}
		if i > 0 && bytes.Compare(last, k) >= 0 {
			return &pageError{p.id(), "has keys out of order"}
		}
		last = k
		if p.leaf() {
			if _, _, err = p.value(i); err != nil {
				return err
			}
		} else if id := p.child(i); id < firstPage || id >= limit {
			return &pageError{p.id(), "has a child outside the file"}
		}
	}
	return nil
}

// search returns the index of the first element whose key is not below key,
// and whether it is key.
func (p page) search(key []byte) (int, bool, error) {
	low, high := 0, p.count()
	for low < high {
		middle := int(uint(low+high) / 2)
		k, err := p.key(middle)
		if err != nil {
			return 0, false, err
		}
		switch c := bytes.Compare(k, key); {
		case c == 0:
			return middle, true, nil
		case c < 0:
			low = middle + 1
		default:
			high = middle
		}
	}
	return low, false, nil
}

// A tree is a bucket.
type tree struct {
	pages
	root     uint64 // 0: the whole bucket is inline
	inline   page
	sequence uint64
}

func (t *tree) rootPage() (page, error) {
	if t.root == 0 {
		return checkPage(0, t.inline)
	}
	return t.at(t.root)
}

// get returns the value of key, nil if there is none. The value lies in the
// mapped file.
func (t *tree) get(key []byte) ([]byte, error) {
	v, bucket, err := t.find(key)
	if bucket {
		return nil, err
	}
	return v, err
}

func (t *tree) find(key []byte) (v []byte, bucket bool, err error) {
	p, i, err := t.locate(key)
	if err != nil || i < 0 {
		return nil, false, err
	}
	return p.value(i)
}

// locate returns the leaf and the index in it of key; the index is -1 if there
// is no such key.
func (t *tree) locate(key []byte) (page, int, error) {
	p, err := t.rootPage()
	if err != nil {
		return nil, -1, err
	}
	for range maxDepth {
		i, found, err := p.search(key)
		if err != nil {
			return nil, -1, err
		}
		if p.leaf() {
			if !found {
				i = -1
			}
			return p, i, nil
		}
		if !found && i > 0 {
			i-- // a branch's key is the lowest of its child
		}
		if p, err = t.at(p.child(i)); err != nil {
			return nil, -1, err
		}
	}
	return nil, -1, &pageError{t.root, "is the root of pages that run in a circle"}
}

// place returns where in the file the value of element i of the leaf p begins;
// 0 if it is in a bucket that is kept in its parent.
func (t *tree) place(p page, i int) uint64 {
	if t.root == 0 {
		return 0
	}
	return p.id()*t.size + p.valueOffset(i)
}

// check checks the pages on the way to key, all that is on them included. What
// bbolt rewrites it copies: a damaged length would make it copy gigabytes.
func (t *tree) check(key []byte) error {
	p, err := t.rootPage()
	if err != nil {
		return err
	}
	for range maxDepth {
		if err := p.whole(t.limit); err != nil || p.leaf() {
			return err
		}
		i, found, err := p.search(key)
		if err != nil {
			return err
		}
		if !found && i > 0 {
			i--
		}
		if p, err = t.rewritable(p, i); err != nil {
			return err
		}
	}
	return &pageError{t.root, "is the root of pages that run in a circle"}
}

// rewritable returns child i of the branch p. It must begin with the key that
// the branch has for it: by that bbolt finds the element to replace when it has
// copied the child, and if it finds none, it adds one and frees a page that the
// other one still points to.
func (t *tree) rewritable(p page, i int) (page, error) {
	want, err := p.key(i)
	if err != nil {
		return nil, err
	}
	id := p.child(i)
	child, err := t.at(id)
	if err != nil {
		return nil, err
	}
	if child.count() == 0 {
		return nil, &pageError{id, "is empty"}
	}
	first, err := child.key(0)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(first, want) {
		return nil, &pageError{id, "does not begin with the key that leads to it"}
	}
	return child, nil
}

// bucket opens the bucket called name, which must be there.
func (t *tree) bucket(name []byte) (tree, error) {
	v, isBucket, err := t.find(name)
	if err != nil {
		return tree{}, fmt.Errorf("bucket %s: %w", name, err)
	}
	if !isBucket || len(v) < bucketHeader {
		return tree{}, fmt.Errorf("bucket %s: %w", name, errNoBucket)
	}
	b := tree{pages: t.pages, root: native.Uint64(v), sequence: native.Uint64(v[8:])}
	if b.root == 0 {
		b.inline = page(v[bucketHeader:])
	}
	return b, nil
}

// A cursor walks a tree in the order of its keys. After an error it can go on:
// next then steps over what could not be read.
type cursor struct {
	tree  *tree
	stack [maxDepth]struct {
		page  page
		index int
	}
	depth int
}

// seek moves to the first key that is not below key.
func (c *cursor) seek(key []byte) (k, v []byte, err error) {
	c.depth = 0
	p, err := c.tree.rootPage()
	for err == nil {
		if c.depth == maxDepth {
			return nil, nil, &pageError{p.id(), "is deeper than a tree can be"}
		}
		var i int
		var found bool
		i, found, err = p.search(key)
		if err != nil {
			break // the page is stepped over
		}
		if !p.leaf() && !found && i > 0 {
			i--
		}
		c.stack[c.depth].page, c.stack[c.depth].index = p, i
		c.depth++
		if p.leaf() {
			if i >= p.count() {
				return c.next()
			}
			return c.current()
		}
		p, err = c.tree.at(p.child(i))
	}
	return nil, nil, err
}

// next moves on. At the end k is nil and err too.
func (c *cursor) next() (k, v []byte, err error) {
	for c.depth > 0 {
		top := &c.stack[c.depth-1]
		top.index++
		if top.index >= top.page.count() {
			c.depth--
			continue
		}
		if top.page.leaf() {
			return c.current()
		}
		if c.depth == maxDepth {
			return nil, nil, &pageError{top.page.id(), "is deeper than a tree can be"}
		}
		p, err := c.tree.at(top.page.child(top.index))
		if err != nil {
			return nil, nil, err
		}
		c.stack[c.depth].page, c.stack[c.depth].index = p, -1
		c.depth++
	}
	return nil, nil, nil
}

// skip leaves the page that the cursor stands on, so that next goes on behind
// it: for a leaf whose order shows that it does not belong where it is.
func (c *cursor) skip() {
	if c.depth > 0 {
		c.depth--
	}
}

func (c *cursor) current() (k, v []byte, err error) {
	top := &c.stack[c.depth-1]
	if k, err = top.page.key(top.index); err != nil {
		return nil, nil, err
	}
	if len(k) == 0 {
		return nil, nil, &pageError{top.page.id(), "has an empty key"}
	}
	v, _, err = top.page.value(top.index)
	return k, v, err
}
