package filequeue

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/ledger"
)

var limitRecords = []ledger.Record{
	{},
	{Wall: 1},
	{Wall: math.MaxInt64},
	{Kind: queue.Quota, Key: "login/ann", Per: queue.Day, Period: 20522, Held: 17, Wall: 1773140000_000000000},
	{Kind: queue.Quota, Key: "x", Per: time.Millisecond, Period: -1},
	{Kind: queue.Quota, Key: strings.Repeat("k", queue.MaxLimitKey), Per: queue.MaxPer, Period: 56, Held: queue.MaxLimit, Wall: math.MaxInt64},
	{Kind: queue.Rate, Key: "ip/192.0.2.1\x00\xff", Per: time.Hour, Held: 0, Max: queue.MaxLimit, Wall: 1},
	{Kind: queue.Rate, Key: "r", Per: time.Second, Held: 2 * queue.MaxLimit, Max: 0, Wall: 0},
}

func TestLimitCodec(t *testing.T) {
	for _, r := range limitRecords {
		b, err := encodeLimit(r)
		if err != nil {
			t.Errorf("%+v: %v", r, err)
			continue
		}
		if got, err := decodeLimit(b); err != nil || got != r {
			t.Errorf("%+v became %+v, %v", r, got, err)
		}
		for n := range b {
			if got, err := decodeLimit(b[:n]); err == nil && r.Kind != 0 && len(r.Key) == 1 && got.Key != "" && n < len(b) {
				t.Errorf("cut off after %d octets, %+v became %+v", n, r, got)
			}
		}
	}
	for _, r := range []ledger.Record{
		{Wall: -1}, {Key: "x"}, {Kind: queue.Slots, Key: "s", Per: time.Hour}, {Kind: queue.Quota, Per: time.Hour}, {Kind: 9, Key: "x", Per: time.Hour},
		{Kind: queue.Quota, Key: "x"}, {Kind: queue.Quota, Key: "x", Per: time.Hour, Held: -1}, {Kind: queue.Quota, Key: "x", Per: time.Hour, Period: -2},
		{Kind: queue.Quota, Key: "x", Per: queue.Day, Period: 1 << 40}, {Kind: queue.Quota, Key: "x", Per: time.Hour, Max: 1},
		{Kind: queue.Rate, Key: "x", Per: time.Hour, Period: 1}, {Kind: queue.Rate, Key: strings.Repeat("k", queue.MaxLimitKey+1), Per: time.Hour},
	} {
		if b, err := encodeLimit(r); err == nil {
			t.Errorf("%+v was written: %x", r, b)
		}
	}
}

// What is read is valid, and has one form.
func FuzzLimitRecord(f *testing.F) {
	for _, r := range limitRecords {
		b, err := encodeLimit(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{2, 0x80, 0x00, 1, 1, 1, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeLimit(b)
		if err != nil {
			return
		}
		if err := r.Validate(); err != nil {
			t.Fatalf("%x: %v", b, err)
		}
		if again, err := encodeLimit(r); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x is %+v, which is %x, %v", b, r, again, err)
		}
	})
}
