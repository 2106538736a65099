package control

import (
	"context"
	"iter"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A Queue is what a Server shows and controls: a *queue.Queue, or a *Client of another server. What its store
// cannot do are errors that match errors.ErrUnsupported. All methods are safe for
// concurrent use; their contracts are those of queue.Queue.
type Queue interface {
	List(ctx context.Context, f queue.Filter) iter.Seq2[queue.Item, error]
	StoreStats(ctx context.Context) (queue.Stats, error)
	Breakdown(ctx context.Context) iter.Seq2[queue.Group, error]
	Health(ctx context.Context) error
	Control(ctx context.Context, f queue.Filter, c queue.Command) (queue.Changed, error)
	Bounce(ctx context.Context, f queue.Filter, status *mailspine.Error) (queue.Changed, error)
}

// A counter is a Queue that says what it has done: *queue.Queue.
type counter interface{ Stats() queue.Counts }

var (
	_ Queue   = (*queue.Queue)(nil)
	_ counter = (*queue.Queue)(nil)
	_ Queue   = (*Client)(nil)
)
