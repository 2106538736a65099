package filequeue

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
)

// What is rerouted while a command reads the envelopes of what it found does not match any more: nothing is deleted,
// or taken, by the route that it had.
func TestReroutedMeanwhile(t *testing.T) {
	filter := queue.Filter{Route: "x", Recipient: "ann@x"}
	for name, act := range map[string]func(s *Store) (int64, error){
		"Control": func(s *Store) (int64, error) {
			n, err := s.Control(ctx, filter, queue.Command{Op: queue.OpDelete})
			return n.Matched, err
		},
		"Take": func(s *Store) (int64, error) {
			l, err := s.Take(ctx, filter, 1, time.Hour)
			return int64(len(l)), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &durabletest.Faults{FS: new(durabletest.Disk)}
			s := mustOpen(t, "spool", small(f))
			defer s.Close()
			mustPut(t, s, newMessage("m1-s", "x: ann"))
			var rerouted atomic.Bool
			f.Set(func(c durabletest.Call) error {
				if c.Op == durabletest.Read && strings.Contains(c.Name, "journal") && rerouted.CompareAndSwap(false, true) {
					n, err := s.Control(ctx, queue.Filter{Route: "x"}, queue.Command{Op: queue.OpReroute, Route: "y"})
					if err != nil || n.Changed != 1 {
						t.Errorf("Reroute: %+v, %v", n, err)
					}
				}
				return nil
			})
			n, err := act(s)
			if err != nil || n != 0 || !rerouted.Load() {
				t.Errorf("%d of what goes another way matched, %v; rerouted: %v", n, err, rerouted.Load())
			}
			f.Set(nil)
			if l := mustLease(t, s, 10); len(l) != 1 || l[0].Route != "y" {
				t.Errorf("leased %v, want the item by its new route", l)
			}
		})
	}
}
