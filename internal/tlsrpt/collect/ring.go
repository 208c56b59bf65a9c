package collect

import (
	"encoding/binary"
	"sync"
)

const (
	maxRing   = 64 << 20 // bytes of datagrams that wait for the consumer, with their chunks
	chunkSize = 1 << 20
	wakeAt    = 4 // full chunks that wake the consumer before its second has passed
)

// A ring holds datagrams between the reader and the consumer. It is a queue of chunks,
// in which each datagram follows its length.
type ring struct {
	wake chan struct{}

	mu     sync.Mutex
	chunks [][]byte
	spare  []byte
	held   int // chunks, those that the consumer works on among them
}

func newRing() *ring { return &ring{wake: make(chan struct{}, 1)} }

// put copies a datagram into the ring, and reports whether there was room.
func (r *ring) put(datagram []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := len(r.chunks) - 1
	if last < 0 || len(r.chunks[last])+4+len(datagram) > chunkSize {
		if r.held == maxRing/chunkSize {
			return false
		}
		chunk := r.spare
		if r.spare = nil; chunk == nil {
			chunk = make([]byte, 0, chunkSize)
		}
		r.chunks = append(r.chunks, chunk)
		r.held++
		if last++; last == wakeAt {
			select {
			case r.wake <- struct{}{}:
			default:
			}
		}
	}
	chunk := binary.LittleEndian.AppendUint32(r.chunks[last], uint32(len(datagram)))
	r.chunks[last] = append(chunk, datagram...)
	return true
}

// take takes the oldest chunk, nil if there is none. The consumer gives it back.
func (r *ring) take() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.chunks) == 0 {
		return nil
	}
	chunk := r.chunks[0]
	r.chunks = r.chunks[1:]
	return chunk
}

func (r *ring) giveBack(chunk []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held--
	r.spare = chunk[:0]
}

// size returns the bytes that the ring takes.
func (r *ring) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held * chunkSize
}

// each calls do with each datagram of a chunk.
func each(chunk []byte, do func([]byte)) {
	for len(chunk) > 0 {
		end := 4 + binary.LittleEndian.Uint32(chunk)
		do(chunk[4:end])
		chunk = chunk[end:]
	}
}
