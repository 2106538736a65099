package ledger

import (
	"math"
	"math/big"
	"testing"
	"time"
	_ "time/tzdata" // the test needs a zone with daylight saving time wherever it runs

	"github.com/mailspine/mailspine/queue"
)

// What comes back in a time is what arithmetic without bounds says, rounded down; how long it takes is rounded up.
func FuzzDrained(f *testing.F) {
	f.Add(int64(time.Minute), int64(60), int64(time.Hour), int64(1))
	f.Add(int64(math.MaxInt64), int64(queue.MaxLimit), int64(time.Millisecond), int64(queue.MaxLimit))
	f.Add(int64(1), int64(1), int64(queue.MaxPer), int64(math.MaxInt64))
	f.Add(int64(-5), int64(7), int64(time.Second), int64(0))
	f.Add(int64(time.Hour), int64(0), int64(time.Second), int64(3))
	f.Fuzz(func(t *testing.T, elapsed, max, per, n int64) {
		max = abs(max) % (queue.MaxLimit + 1)
		per = int64(time.Millisecond) + abs(per)%(int64(queue.MaxPer)-int64(time.Millisecond)+1)
		got, took, exact := drained(time.Duration(elapsed), max, time.Duration(per))
		want, rest := new(big.Int), new(big.Int)
		if elapsed > 0 {
			want.QuoRem(new(big.Int).Mul(big.NewInt(elapsed), big.NewInt(max)), big.NewInt(per), rest)
		}
		if !want.IsInt64() {
			want.SetInt64(math.MaxInt64)
		} else if got < math.MaxInt64 && exact != (rest.Sign() == 0) {
			t.Errorf("drained(%d, %d, %d) is exact: %v, the rest is %v", elapsed, max, per, exact, rest)
		}
		if want.Int64() != got {
			t.Errorf("drained(%d, %d, %d) = %d, want %v", elapsed, max, per, got, want)
		}
		if took < 0 || elapsed >= 0 && took > time.Duration(elapsed) || elapsed <= 0 && took != 0 {
			t.Errorf("of %d it took %d", elapsed, took)
		}
		if n = abs(n); max == 0 {
			return
		}
		// ceil(n x per / max)
		q, r := new(big.Int).QuoRem(new(big.Int).Mul(big.NewInt(n), big.NewInt(per)), big.NewInt(max), new(big.Int))
		if r.Sign() > 0 {
			q.Add(q, big.NewInt(1))
		}
		if !q.IsInt64() {
			q.SetInt64(math.MaxInt64)
		}
		if d := refill(n, max, time.Duration(per)); int64(d) != q.Int64() {
			t.Errorf("refill(%d, %d, %d) = %d, want %v", n, max, per, d, q)
		}
		if n > 0 && n < queue.MaxLimit {
			if back, _, _ := drained(refill(n, max, time.Duration(per)), max, time.Duration(per)); back < n {
				t.Errorf("after refill(%d, %d, %d) only %d came back", n, max, per, back)
			}
		}
	})
}

func abs(n int64) int64 {
	if n == math.MinInt64 {
		return math.MaxInt64
	}
	if n < 0 {
		return -n
	}
	return n
}

func TestPeriodOf(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	// Every hour of a year with both changes of the clock: the period is the calendar day.
	var last int64
	for h := range 366 * 24 {
		now := time.Date(2026, 1, 1, 0, 30, 0, 0, time.UTC).Add(time.Duration(h) * time.Hour)
		l := queue.Limit{Kind: queue.Quota, Key: "q", Per: queue.Day, Offset: queue.DayOffset(now, berlin)}
		p := periodOf(now.UnixNano(), l)
		if day := time.Unix(p*86400, 0).UTC().Format(time.DateOnly); day != now.In(berlin).Format(time.DateOnly) {
			t.Fatalf("%v is in the period of %s", now.In(berlin), day)
		}
		if p < last {
			t.Fatalf("at %v the period goes back", now.In(berlin))
		}
		last = p
	}
	if p := periodOf(-1, queue.Limit{Per: time.Hour}); p != -1 {
		t.Errorf("the last moment before 1970 is in period %d", p)
	}
}

// Accounts that say nothing are forgotten, and no others.
func TestSweep(t *testing.T) {
	now := time.Date(2026, 3, 10, 12, 30, 0, 0, time.UTC)
	l := New(Options{Now: func() time.Time { return now }})
	take := func(lim queue.Limit, ttl time.Duration) queue.Permit {
		p, err := l.Take(t.Context(), queue.TakeRequest{Limits: []queue.Limit{lim}, TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	hourly := queue.Limit{Kind: queue.Quota, Key: "q", Max: 5, Per: time.Hour}
	slot := queue.Limit{Kind: queue.Slots, Key: "s", Max: 5}
	rate := queue.Limit{Kind: queue.Rate, Key: "r", Max: 5, Per: time.Hour}
	take(hourly, -1)
	take(rate, -1)
	s := take(slot, 24*time.Hour)
	keys := func(want int) {
		t.Helper()
		l.sweep(l.now())
		if n := l.Stats().Keys; n != want {
			t.Errorf("at %v there are %d keys, want %d", now, n, want)
		}
	}
	keys(3)
	now = now.Add(12 * time.Minute)
	keys(2) // the rate has refilled
	now = now.Add(time.Hour)
	keys(2) // another offset may still be in the quota's period
	now = now.Add(2 * time.Hour)
	keys(1)
	l.Return(t.Context(), s.ID, 0)
	keys(0)
	for i := range 10_000 {
		hourly.Key = string(rune(i + 1))
		take(hourly, -1)
		if i == 5000 {
			now = now.Add(5 * time.Hour)
		}
	}
	if n := l.Stats().Keys; n > 7000 {
		t.Errorf("%d keys are remembered, 5,000 of them are in use", n)
	}
}
