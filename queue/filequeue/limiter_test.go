package filequeue

import (
	"testing"
	"time"

	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/queuetest"
)

func mustOpenLimiter(t testing.TB, dir string, o *LimiterOptions) *Limiter {
	t.Helper()
	l, err := OpenLimiter(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func reopenLimiter(t *testing.T, l queue.Limiter) queue.Limiter {
	t.Helper()
	old := l.(*Limiter)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	o := old.log.opt
	return mustOpenLimiter(t, old.log.dir, &o)
}

// The kit over a disk in memory, in bubbles; with logs so short that they are replaced again and again.
func TestLimiter(t *testing.T) {
	queuetest.RunLimiter(t, queuetest.LimiterHarness{
		Open: func(t *testing.T, now func() time.Time) queue.Limiter {
			return mustOpenLimiter(t, "limits", &LimiterOptions{fs: new(durabletest.Disk), compact: 1, Now: now, Logger: quiet()})
		},
		Reopen: reopenLimiter,
		Crash: func(t *testing.T, l queue.Limiter) queue.Limiter {
			old := l.(*Limiter)
			o := old.log.opt
			o.fs = o.fs.(*durabletest.Disk).Crash(0)
			return mustOpenLimiter(t, old.log.dir, &o)
		},
		OpenSmall: func(t *testing.T) queue.Limiter {
			return mustOpenLimiter(t, "limits", &LimiterOptions{fs: new(durabletest.Disk), MaxKeys: 10, MaxPermits: 10})
		},
		Clock:    true,
		Synctest: true,
	})
}

// The kit over a real directory, in real time.
func TestLimiterRealTime(t *testing.T) {
	queuetest.RunLimiter(t, queuetest.LimiterHarness{
		Open: func(t *testing.T, now func() time.Time) queue.Limiter {
			return mustOpenLimiter(t, t.TempDir(), &LimiterOptions{Now: now})
		},
		Reopen: reopenLimiter,
		Clock:  true,
	})
}
