package filequeue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/ledger"
)

// A record of a limiter's log, all numbers varints of package encoding/binary in their shortest form:
//
//	kind [1 octet]  wall                                     the time, kind 0
//	kind [1 octet]  wall  per  held  max     key             a rate
//	kind [1 octet]  wall  per  held  period  key             a quota; period may be negative
//
// The key goes to the end of the record. The kinds are those of queue.LimitKind.

// maxLimitRecord bounds a record in octets: a kind, four numbers and the key.
const maxLimitRecord = 1 + 4*binary.MaxVarintLen64 + queue.MaxLimitKey

var errLimitRecord = errors.New("filequeue: a record of the limiter is none")

func encodeLimit(r ledger.Record) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, 32+len(r.Key)), byte(r.Kind))
	b = binary.AppendUvarint(b, uint64(r.Wall))
	if r.Kind == 0 {
		return b, nil
	}
	b = binary.AppendUvarint(b, uint64(r.Per))
	b = binary.AppendUvarint(b, uint64(r.Held))
	if r.Kind == queue.Quota {
		b = binary.AppendVarint(b, r.Period)
	} else {
		b = binary.AppendUvarint(b, uint64(r.Max))
	}
	return append(b, r.Key...), nil
}

// decodeLimit is total: what is no record is an error.
func decodeLimit(b []byte) (r ledger.Record, err error) {
	if len(b) < 2 || len(b) > maxLimitRecord {
		return r, fmt.Errorf("%w: it has %d octets", errLimitRecord, len(b))
	}
	r.Kind = queue.LimitKind(b[0])
	b = b[1:]
	ok := true
	number := func() int64 {
		v, n := binary.Uvarint(b)
		if n <= 0 || n > 1 && b[n-1] == 0 || v > 1<<63-1 {
			ok = false
			return 0
		}
		b = b[n:]
		return int64(v)
	}
	r.Wall = number()
	if r.Kind != 0 && ok {
		r.Per = time.Duration(number())
		r.Held = number()
		if r.Kind == queue.Quota {
			u := number()
			r.Period = int64(uint64(u)>>1) ^ -(u & 1) // as binary.Varint, whose numbers are in zigzag order
		} else {
			r.Max = number()
		}
		r.Key, b = string(b), nil
	}
	if !ok || len(b) > 0 {
		return ledger.Record{}, fmt.Errorf("%w: its numbers are cut off, or too long", errLimitRecord)
	}
	if err := r.Validate(); err != nil {
		return ledger.Record{}, err
	}
	return r, nil
}
