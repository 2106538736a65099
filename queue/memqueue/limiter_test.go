package memqueue_test

import (
	"testing"
	"time"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
	"github.com/mailspine/mailspine/queue/queuetest"
)

func openLimiter(_ *testing.T, now func() time.Time) queue.Limiter {
	return memqueue.NewLimiter(&memqueue.LimiterOptions{Now: now})
}

func TestLimiter(t *testing.T) {
	queuetest.RunLimiter(t, queuetest.LimiterHarness{
		Open: openLimiter,
		OpenSmall: func(*testing.T) queue.Limiter {
			return memqueue.NewLimiter(&memqueue.LimiterOptions{MaxKeys: 10, MaxPermits: 10})
		},
		Clock:    true,
		Synctest: true,
	})
}

// The kit in real time, as drivers see it whose clock is another machine's.
func TestLimiterRealTime(t *testing.T) {
	queuetest.RunLimiter(t, queuetest.LimiterHarness{Open: openLimiter, Clock: true})
}
