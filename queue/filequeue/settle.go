package filequeue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/queue"
)

// maxTogether bounds what one append of settlements gathers, in octets, but for the
// last of them.
const maxTogether = 16 << 20

// Settle implements queue.Store. All settlements of a call are synced together.
func (s *Store) Settle(ctx context.Context, list ...queue.Settlement) ([]error, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.end()
	if err := s.failure(); err != nil {
		return nil, err
	}
	errs := make([]error, len(list))
	var ids []mailspine.MsgID
	for i := range list {
		for _, e := range list[i].Emit {
			if err := e.Message.Validate(e.Content); err != nil {
				errs[i] = err
				break
			}
			ids = append(ids, e.Message.Envelope.ID)
		}
	}
	owned, err := s.claimAll(ctx, ids)
	if err != nil {
		return nil, err
	}
	defer func() {
		for id := range owned {
			s.unclaim(id)
		}
	}()
	var batch []*settling
	size := 0
	flush := func() {
		if err := s.appendSettled(batch); err != nil {
			for _, st := range batch {
				errs[st.i] = fmt.Errorf("filequeue: settle: %w", err)
				for _, p := range st.puts {
					owned[p.put.env.ID] = true // for a settlement after it
				}
			}
		}
		batch, size = nil, 0
	}
	for i := range list {
		if errs[i] != nil {
			continue
		}
		st := &settling{i: i, in: &list[i]}
		if errs[i] = s.prepare(ctx, st, owned); errs[i] != nil {
			continue
		}
		batch = append(batch, st)
		if size += len(st.rec.Meta) + len(st.rec.Body); size > maxTogether {
			flush()
		}
	}
	flush()
	return errs, nil
}

// claimAll claims those of the IDs that are not known. They are taken in order, so that
// two calls never wait for each other.
func (s *Store) claimAll(ctx context.Context, ids []mailspine.MsgID) (map[mailspine.MsgID]bool, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	owned := map[mailspine.MsgID]bool{}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		mine, err := s.claim(ctx, id)
		if err != nil {
			for id := range owned {
				s.unclaim(id)
			}
			return nil, err
		}
		if mine {
			owned[id] = true
		}
	}
	return owned, nil
}

// A settling is a Settlement on its way.
type settling struct {
	i     int
	in    *queue.Settlement
	it    *item
	due   int64 // of the lease, in case it comes to nothing
	entry *settleEntry
	rec   durable.Record
	puts  []settlingPut
	file  uint64 // the body of the message that it finished
}

type settlingPut struct {
	put    *putEntry
	offset uint32 // in the record's meta
	cost   int64
}

// prepare makes the record of a settlement. After it returned nil, the item is busy.
// owned has false for an ID that another settlement of the call emits.
func (s *Store) prepare(ctx context.Context, st *settling, owned map[mailspine.MsgID]bool) error {
	s.mu.Lock()
	it := s.reserve(st.in.Token)
	if it == nil {
		s.mu.Unlock()
		return queue.ErrLeaseLost
	}
	st.it, st.due = it, it.due
	v := s.view(it, s.now())
	open := int(it.open)
	s.mu.Unlock()
	defer s.release(v.segments()...)
	err := s.fill(ctx, st, &v, open, owned)
	if err != nil {
		for _, p := range st.puts {
			s.removeBody(p.put.body.file)
			owned[p.put.env.ID] = true
		}
		s.mu.Lock()
		s.giveBack(st)
		s.mu.Unlock()
	}
	return err
}

// reserve makes the item of a lease busy, or returns nil if the lease is lost.
// mu is held; it is given up while the compactor copies the message.
func (s *Store) reserve(t queue.Token) *item {
	for {
		it := s.holder(t, s.now())
		if it == nil {
			return nil
		}
		if it.msg.moving {
			s.cond.Wait()
			continue
		}
		s.sched.take(it)
		s.sched.rest(it, busy)
		it.msg.busy++
		return it
	}
}

// giveBack makes a settlement that came to nothing the lease that it was. mu is held.
func (s *Store) giveBack(st *settling) {
	s.sched.take(st.it)
	s.sched.wait(st.it, st.due, leased)
	s.unreserve(st.it.msg)
	s.notify()
}

func (s *Store) unreserve(m *message) {
	if m.busy--; m.busy == 0 {
		s.cond.Broadcast()
	}
}

func (s *Store) fill(ctx context.Context, st *settling, v *view, open int, owned map[mailspine.MsgID]bool) error {
	in := st.in
	if len(in.Results) != open {
		return fmt.Errorf("%w: %d results, %d recipients", errResults, len(in.Results), open)
	}
	left := 0
	for _, r := range in.Results {
		if r.State > queue.Failed {
			return errResults
		}
		if r.State == queue.Open {
			left++
		}
	}
	st.entry = &settleEntry{
		item: uint64(v.id), epoch: v.epoch, stamp: s.wall(s.now()), delay: span(in.Delay), attempts: uint64(v.attempts) + 1,
	}
	if left == 0 {
		st.entry.done = v.msg
	} else {
		before, err := v.recipients(nil)
		if err != nil {
			return fmt.Errorf("filequeue: item %d of message %s: %w", v.id, v.msg, err)
		}
		if len(before) != open {
			return errDecode
		}
		for i, r := range in.Results {
			if r.State == queue.Open {
				r.Warned = r.Warned || before[i].last.Warned
				st.entry.rcpts = append(st.entry.rcpts, recipient{before[i].index, r})
			}
		}
	}
	var e encoder
	e.settle(st.entry) // first: the item's state is at offset 0
	for _, em := range in.Emit {
		id := em.Message.Envelope.ID
		if !owned[id] {
			continue // known, or in a settlement before this one
		}
		b, err := s.bring(ctx, em.Content)
		if err != nil {
			return fmt.Errorf("filequeue: emit %s: %w", id, err)
		}
		b.ref.headOff = uint64(len(st.rec.Body))
		p := settlingPut{put: s.newPut(em.Message, b.ref), offset: uint32(len(e.b))}
		st.rec.Body = append(st.rec.Body, b.head...)
		e.put(p.put)
		p.cost = int64(len(e.b)) - int64(p.offset) + int64(len(b.head)) + entryCost
		st.puts = append(st.puts, p)
		owned[id] = false
	}
	st.rec.Meta = e.b
	if n := len(st.rec.Meta) + len(st.rec.Body); n > durable.MaxRecord {
		return fmt.Errorf("filequeue: a settlement of %d octets, over %d", n, durable.MaxRecord)
	}
	return ctx.Err()
}

// appendSettled makes settlements happen, or gives the leases back.
func (s *Store) appendSettled(batch []*settling) error {
	if len(batch) == 0 {
		return nil
	}
	recs := make([]durable.Record, len(batch))
	for i, st := range batch {
		recs[i] = st.rec
	}
	s.hook("settle.prepared")
	err := s.append(recs, func(seg *segment, locs []durable.Location) {
		for i, st := range batch {
			m := st.it.msg
			cost := int64(len(st.rec.Meta)) + entryCost
			if len(st.puts) > 0 {
				cost = int64(st.puts[0].offset) + entryCost
			}
			now := s.now()
			s.settled(st.it, st.entry, location{seg, locs[i].Offset, 0}, cost, now)
			if len(m.items) == 0 {
				st.file = m.file
				s.tombs.bury(m.id, now+int64(queue.TombstoneTTL))
			}
			for _, p := range st.puts {
				s.insert(p.put, location{seg, locs[i].Offset, p.offset}, p.cost, now)
			}
			s.unreserve(m)
		}
		s.tombs.expire(s.now())
		s.notify()
	})
	if err != nil {
		s.mu.Lock()
		for _, st := range batch {
			s.giveBack(st)
		}
		s.mu.Unlock()
		for _, st := range batch {
			for _, p := range st.puts {
				if !errors.Is(err, durable.ErrFailed) {
					s.removeBody(p.put.body.file)
				}
			}
		}
		return err
	}
	s.hook("settle.done")
	for _, st := range batch {
		s.removeBody(st.file)
	}
	return nil
}

// settled ends the lease of a busy item. Its delay begins at base. mu is held.
func (s *Store) settled(it *item, e *settleEntry, at location, cost, base int64) {
	it.epoch, it.attempts = e.epoch, uint32(e.attempts)
	if len(e.rcpts) == 0 {
		s.removeItem(it)
		return
	}
	s.live += cost - it.cost
	it.state, it.cost, it.open, it.reason = at, cost, uint32(len(e.rcpts)), ""
	it.lapsed = false
	s.sched.take(it)
	s.sched.wait(it, base+e.delay, waiting)
}

// maxAbandon is how many leases one record of Abandon ends.
const maxAbandon = 1000

// Abandon implements queue.Store. The leases end even if that cannot be written: then
// the delay and the reason, cut to 1,000 octets, are not known to the next process, and the error says why.
func (s *Store) Abandon(ctx context.Context, delay time.Duration, why string, tokens ...queue.Token) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.end()
	why = reason(why)
	var errs []error
	for part := range slices.Chunk(tokens, maxAbandon) {
		if err := s.abandon(span(delay), why, part); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("filequeue: abandon: %w", err)
	}
	return nil
}

func (s *Store) abandon(delay int64, why string, tokens []queue.Token) error {
	var e encoder
	var items []*item
	s.mu.Lock()
	for _, t := range tokens {
		if it := s.reserve(t); it != nil {
			items = append(items, it)
			e.abandon(&abandonEntry{uint64(it.id), it.epoch, s.wall(s.now()), delay, why})
		}
	}
	s.mu.Unlock()
	if len(items) == 0 {
		return nil
	}
	apply := func(*segment, []durable.Location) {
		now := s.now()
		for _, it := range items {
			s.sched.take(it)
			it.reason, it.lapsed = why, false
			s.sched.wait(it, now+delay, waiting)
			s.unreserve(it.msg)
		}
		s.notify()
	}
	err := s.append([]durable.Record{{Meta: e.b}}, apply)
	if err != nil {
		s.mu.Lock()
		apply(nil, nil)
		s.mu.Unlock()
	}
	return err
}

// recordLapsed writes down when leases ended by themselves, so that an orderly
// restart does not change whose turn it is. It is called when nothing else runs.
func (s *Store) recordLapsed() error {
	s.sched.advance(s.now())
	var e encoder
	var recs []durable.Record
	for _, it := range s.items {
		if !it.lapsed || it.status != ready {
			continue
		}
		e.abandon(&abandonEntry{item: uint64(it.id), epoch: it.epoch, stamp: s.wall(it.due), reason: it.reason})
		if len(e.b) > copyBytes {
			recs = append(recs, durable.Record{Meta: e.b})
			e = encoder{}
		}
	}
	if len(e.b) > 0 {
		recs = append(recs, durable.Record{Meta: e.b})
	}
	for _, rec := range recs {
		if _, err := s.head.log.Append(rec); err != nil {
			return err
		}
	}
	return nil
}
