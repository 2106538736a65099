package queue

import (
	"context"
	"slices"
	"time"
)

// tidy renews what a BlockLimiter holds, and gives back what nobody uses, until ctx is done.
func (l *BlockLimiter) tidy(ctx context.Context) {
	tick := time.NewTicker(max(min(l.opt.Hold/2, l.opt.TTL/4), time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.tidyOnce(ctx)
		}
	}
}

func (l *BlockLimiter) tidyOnce(ctx context.Context) {
	// The shared Limiter is not waited for longer than it takes it to forget us.
	ctx, cancel := context.WithTimeout(ctx, l.opt.TTL/4)
	defer cancel()
	l.mu.Lock()
	now := time.Now()
	l.expire(now)
	var back, keep []*block
	for b := range l.blocks {
		switch {
		case b.ended || !now.Before(b.end):
			l.forget(b) // it cannot be given back any more
		case b.out == 0 && (b.left == 0 || b.retired || !l.usable(b, now) || l.idle(b, now)):
			b.retired = true
			back = append(back, b)
		case b.end.Sub(now) < l.opt.TTL*2/3:
			keep = append(keep, b)
		}
	}
	for k, p := range l.pools {
		p.retired = nil // they are among back, or are handed out
		if p.blocks == 0 && p.busy == nil && (p.over == nil || !now.Before(p.again)) {
			delete(l.pools, k)
		}
	}
	l.mu.Unlock()
	for _, b := range back {
		l.giveBack(ctx, b)
	}
	for ids := range slices.Chunk(keep, 1000) {
		l.renew(ctx, ids)
	}
}

// idle reports whether nobody has wanted what is left of a block for Hold. What is left of one that is in use
// stays, since the shared Limiter takes back a permit once.
func (l *BlockLimiter) idle(b *block, now time.Time) bool {
	since := b.fetched
	if b.pool.limit.Kind == Slots {
		since = b.idle
	}
	return !now.Before(since.Add(l.opt.Hold))
}

// forget takes note that the permit of a block has ended. It is called with mu.
func (l *BlockLimiter) forget(b *block) {
	if _, ok := l.blocks[b]; ok {
		delete(l.blocks, b)
		b.pool.blocks--
	}
	b.ended = true
}

// giveBack ends the permit of a block that is not handed out.
func (l *BlockLimiter) giveBack(ctx context.Context, b *block) {
	l.mu.Lock()
	if _, ok := l.blocks[b]; !ok || b.out > 0 {
		l.mu.Unlock()
		return
	}
	delete(l.blocks, b)
	left := b.left
	l.mu.Unlock()
	err := l.next.Return(ctx, b.id, left)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		// Return can be repeated: the next round does.
		l.blocks[b] = struct{}{}
		l.opt.Logger.Warn("queue: giving back to the shared limiter failed", "err", err)
		return
	}
	b.ended, b.left = true, 0
	b.pool.blocks--
}

// renew keeps blocks.
func (l *BlockLimiter) renew(ctx context.Context, blocks []*block) {
	ids := make([]PermitID, len(blocks))
	for i, b := range blocks {
		ids[i] = b.id
	}
	asked := time.Now()
	ended, err := l.next.Renew(ctx, l.opt.TTL, ids...)
	if err != nil {
		l.opt.Logger.Warn("queue: renewing permits of the shared limiter failed", "permits", len(ids), "err", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range blocks {
		if slices.Contains(ended, b.id) {
			l.forget(b)
		} else {
			b.end = asked.Add(l.opt.TTL)
		}
	}
}
