package memqueue

import (
	"time"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/ledger"
)

// The defaults of LimiterOptions.
const (
	DefaultMaxKeys    = ledger.DefaultMaxKeys
	DefaultMaxPermits = ledger.DefaultMaxPermits
)

// LimiterOptions tune a Limiter. The zero value, and nil, mean the defaults.
type LimiterOptions struct {
	// MaxKeys is how many counts there are at the same time, about 250 octets each; 0: DefaultMaxKeys. Those that
	// say nothing any more are forgotten: slots of which none is held, rates that have refilled, quotas whose period is over for
	// as long again. Beyond it a Take of a new key is queue.ErrLimiterFull.
	MaxKeys int
	// MaxPermits is how many permits are open at the same time, about 200 octets each; 0: DefaultMaxPermits. Beyond it a
	// Take is queue.ErrLimiterFull.
	MaxPermits int
	// Now is the clock; nil: time.Now. Its wall time tells the periods of quotas.
	Now func() time.Time
}

// A Limiter is a queue.Limiter in memory. It is made by [NewLimiter]. What it has counted ends with the process: a
// program that starts again grants each quota anew.
type Limiter struct {
	*ledger.Ledger
}

var _ queue.Limiter = (*Limiter)(nil)

// LimiterStats counts what a Limiter remembers.
type LimiterStats struct {
	Keys    int
	Permits int // open ones
}

// NewLimiter returns a Limiter that has counted nothing. nil options are the defaults.
func NewLimiter(o *LimiterOptions) *Limiter {
	if o == nil {
		o = &LimiterOptions{}
	}
	return &Limiter{ledger.New(ledger.Options{MaxKeys: o.MaxKeys, MaxPermits: o.MaxPermits, Now: o.Now})}
}

// Stats returns how much is remembered.
func (l *Limiter) Stats() LimiterStats { return LimiterStats(l.Ledger.Stats()) }
