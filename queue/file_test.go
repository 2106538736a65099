package queue_test

import (
	"log/slog"
	"testing"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/filequeue"
)

// What operators do with a queue in files, which lists it in parts, while it changes.
func TestOperatorFiles(t *testing.T) {
	s, err := filequeue.Open(t.TempDir(), &filequeue.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const n = 300
	b := &bench{T: t, store: s}
	b.q = &queue.Queue{Store: s, Hostname: "mx.example.org", Logger: slog.New(slog.DiscardHandler)}
	for range n {
		b.send(envelope("", "ann@example.net"))
	}
	all := queue.Changed{Matched: n, Changed: n}
	if got, err := b.q.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpHold, Reason: "look at it"}); err != nil || got != all {
		t.Errorf("hold: %+v, %v", got, err)
	}
	b.q.Router = queue.RouterFunc(byTwo)
	if got, err := b.q.Control(ctx, queue.Filter{}, queue.Command{Op: queue.OpReroute}); err != nil || got != all {
		t.Errorf("reroute: %+v, %v", got, err)
	}
	if got, err := b.q.Bounce(ctx, queue.Filter{}, nil); err != nil || got != all {
		t.Errorf("bounce: %+v, %v", got, err)
	}
	for g, err := range b.q.Breakdown(ctx) {
		if want := (queue.Group{Route: "two/example.org", Items: n, Due: n}); err != nil || g != want { // the reports
			t.Errorf("left: %+v, %v", g, err)
		}
	}
}
