package filequeue

import (
	"testing"

	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/queuetest"
)

// The kit over a real directory, in real time.
func TestStore(t *testing.T) {
	queuetest.Run(t, queuetest.Harness{
		Open:   func(t *testing.T) queue.Store { return mustOpen(t, t.TempDir(), nil) },
		Reopen: reopen,
	})
}

// The kit over a disk in memory, in bubbles, so that hours pass and the property test runs; with
// segments so small that the compactor is busy.
func TestStoreSynctest(t *testing.T) {
	queuetest.Run(t, queuetest.Harness{
		Open: func(t *testing.T) queue.Store {
			return mustOpen(t, "spool", &Options{fs: new(durabletest.Disk), SegmentSize: 1})
		},
		Reopen:   reopen,
		Synctest: true,
	})
}

func mustOpen(t testing.TB, dir string, o *Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func reopen(t *testing.T, s queue.Store) queue.Store {
	t.Helper()
	old := s.(*Store)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	o := old.opt
	return mustOpen(t, old.dir, &o)
}
