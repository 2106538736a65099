package mtasts

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"
)

// refreshWorkers is how many policies Refresh fetches at a time.
const refreshWorkers = 8

// Refresh fetches the policies again that are used and have grown half as old as RefreshAfter, and forgets those that have expired. An application calls
// it once in RefreshAfter, that is once a day, so that nobody who keeps a policy from being fetched on one day can wait
// for its end (RFC 8461 section 10.2); [Cache.Run] does so. What is not used for KeepUnused is left to its end.
//
// It returns when all is done. What cannot be fetched is logged and stays as it is. The error is of the Store, or of ctx.
func (c *Cache) Refresh(ctx context.Context) error {
	work := make(chan string)
	var wg sync.WaitGroup
	for range min(refreshWorkers, or(c.MaxFetches, DefaultMaxFetches)) {
		wg.Go(func() {
			for d := range work {
				// What goes wrong was logged.
				_, _ = c.policy(ctx, d, true)
			}
		})
	}
	err := c.eachDue(ctx, func(d string) bool {
		select {
		case work <- d:
			return true
		case <-ctx.Done():
			return false
		}
	})
	close(work)
	wg.Wait()
	if cerr := ctx.Err(); cerr != nil {
		return fmt.Errorf("mtasts: refresh: %w", cerr)
	}
	if err != nil {
		return fmt.Errorf("mtasts: refresh: %w", err)
	}
	return nil
}

// Run calls Refresh now and then once in RefreshAfter until ctx ends, and returns its error. What Refresh returns is logged.
func (c *Cache) Run(ctx context.Context) error {
	t := time.NewTicker(or(c.RefreshAfter, DefaultRefreshAfter))
	defer t.Stop()
	for {
		if err := c.Refresh(ctx); err != nil && ctx.Err() == nil {
			c.log().Error("mtasts: policies not refreshed", "err", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// eachDue calls f for each domain whose policy is to be refreshed until it returns false, and forgets what has expired.
func (c *Cache) eachDue(ctx context.Context, f func(domain string) bool) error {
	var errs []error // at most one of each kind
	for e, err := range c.entries(ctx) {
		if err != nil {
			errs = append(errs, err)
			break
		}
		now := c.now()
		switch {
		case c.over(e, now):
			if err := c.forget(ctx, e.Domain); err != nil {
				return errors.Join(append(errs, err)...)
			}
		case now.Sub(e.Used) < or(c.KeepUnused, DefaultKeepUnused) && c.due(e, e.Policy.ID, now, true):
			if !f(e.Domain) {
				return errors.Join(errs...)
			}
		}
	}
	return errors.Join(errs...)
}

// over reports whether an entry is of no use any more: it has expired, and was not fetched just now (see Cache.fresh).
func (c *Cache) over(e Entry, now time.Time) bool {
	return e.Expired(now) && !c.fresh(e, e.Policy.ID, now)
}

// entries are those of the Store, or those in memory.
func (c *Cache) entries(ctx context.Context) iter.Seq2[Entry, error] {
	if c.Store != nil {
		return c.Store.All(ctx)
	}
	return func(yield func(Entry, error) bool) {
		c.mu.Lock()
		all := make([]Entry, 0, len(c.domains))
		for _, st := range c.domains {
			if !st.entry.Fetched.IsZero() {
				all = append(all, st.entry)
			}
		}
		c.mu.Unlock()
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// forget removes what is kept for a domain, if it has expired still.
func (c *Cache) forget(ctx context.Context, domain string) error {
	st := c.pin(domain)
	defer c.unpin(st)
	c.load(ctx, st)
	st.io.Lock()
	defer st.io.Unlock()
	c.mu.Lock()
	if !st.entry.Fetched.IsZero() && !c.over(st.entry, c.now()) {
		c.mu.Unlock()
		return nil // it was fetched meanwhile
	}
	c.set(st, Entry{})
	c.mu.Unlock()
	if c.Store == nil {
		return nil
	}
	return c.Store.Delete(ctx, domain)
}
