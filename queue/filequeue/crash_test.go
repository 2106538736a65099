package filequeue

import (
	"testing"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/queuetest"
)

// A store whose process is killed, at every point that it names and at any
// other moment, keeps what it accepted.
func TestCrash(t *testing.T) {
	queuetest.RunCrash(t, queuetest.Crash{
		Open: func(dir string, hook func(string)) (queue.Store, error) {
			s, err := Open(dir, &Options{SegmentSize: 1, InlineMax: 8 << 10, Logger: quiet(), testHook: hook})
			if err != nil {
				return nil, err
			}
			return s, nil
		},
		Points: []string{
			"put.encoded", "journal.written", "journal.durable", "put.done", "settle.prepared", "settle.done", "put.staged", "put.synced",
			"put.renamed", "put.dirsynced", "control.prepared", "control.done", "journal.rotated", "compact.copied", "compact.removed",
		},
	})
}
