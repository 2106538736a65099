package memqueue_test

import (
	"testing"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
	"github.com/mailspine/mailspine/queue/queuetest"
)

func TestStore(t *testing.T) {
	queuetest.Run(t, queuetest.Harness{
		Open:     func(*testing.T) queue.Store { return memqueue.New(nil) },
		Synctest: true,
	})
}

// The kit in real time, as drivers see it whose clock is another machine's.
func TestStoreRealTime(t *testing.T) {
	queuetest.Run(t, queuetest.Harness{
		Open: func(*testing.T) queue.Store { return memqueue.New(nil) },
	})
}
