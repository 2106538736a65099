package durable

import "encoding/binary"

// Gathered returns how many records wait for the next batch.
func (l *Log) Gathered() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == nil {
		return 0
	}
	n := 0
	for b := l.next.buf; len(b) > 0; n++ {
		b = b[recordHeader+binary.LittleEndian.Uint32(b[4:])+binary.LittleEndian.Uint32(b[8:]):]
	}
	return n
}
