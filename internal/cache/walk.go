package cache

import "bytes"

// A walk goes through a tree in the order of its keys, and over what cannot be
// read.
type walk struct {
	cursor  cursor
	from    []byte
	last    []byte
	started bool
	bad     uint64 // pages, or elements of pages, that could not be read
}

func newWalk(t *tree, from []byte) *walk {
	return &walk{cursor: cursor{tree: t}, from: from}
}

// next calls use with the next key and its value, in a guard. More is false at
// the end. An error says that something was stepped over, or is use's; the walk
// can go on.
func (w *walk) next(use func(k, v []byte) error) (more bool, err error) {
	more = true
	err = guard(func() error {
		var k, v []byte
		var err error
		if w.started {
			k, v, err = w.cursor.next()
		} else {
			w.started = true
			k, v, err = w.cursor.seek(w.from)
		}
		if err != nil {
			return err
		}
		if k == nil {
			more = false
			return nil
		}
		if w.last != nil && bytes.Compare(k, w.last) <= 0 {
			// A page that is where it does not belong, perhaps above itself.
			id := w.cursor.stack[w.cursor.depth-1].page.id()
			w.cursor.skip()
			return &pageError{id, "has keys out of order"}
		}
		w.last = append(w.last[:0], k...)
		return use(k, v)
	})
	if err != nil && unreadable(err) {
		// Pages that run in circles could be stepped over for ever.
		if w.bad++; w.bad > w.cursor.tree.limit {
			more = false
		}
	}
	return more, err
}

// seek moves on to key, which must lie ahead; the next call of next begins there.
func (w *walk) seek(key []byte) {
	w.from = append(w.from[:0], key...)
	w.started = false
}
