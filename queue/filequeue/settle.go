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
	"github.com/mailspine/mailspine/queue/internal/sched"
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
	slot  slot
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
	i := s.reserve(st.in.Token)
	if i == 0 {
		s.mu.Unlock()
		return queue.ErrLeaseLost
	}
	st.slot, st.due = i, s.sched.Due(i)
	v := s.view(i, s.now())
	s.mu.Unlock()
	defer s.drop(v)
	err := s.fill(ctx, st, &v, owned)
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

// reserve makes the item of a lease busy, or returns 0 if the lease is lost.
// mu is held; it is given up while the compactor copies the message.
func (s *Store) reserve(t queue.Token) slot {
	for {
		i := s.holder(t, s.now())
		if i == 0 || s.makeBusy(i) {
			return i
		}
		s.cond.Wait()
	}
}

// makeBusy makes an item Busy, unless its message is moving. mu is held.
func (s *Store) makeBusy(i slot) bool {
	m := s.messages.At(s.items.At(i).msg)
	if m.is(isMoving) {
		return false
	}
	s.sched.Reserve(i)
	m.flags++
	return true
}

// giveBack makes a settlement that came to nothing the lease that it was. mu is held.
func (s *Store) giveBack(st *settling) {
	s.sched.Lend(st.slot, st.due)
	s.unreserve(st.slot)
	s.notify()
}

// unreserve is called for an item that was Busy, before it is removed. mu is held.
func (s *Store) unreserve(i slot) {
	m := s.messages.At(s.items.At(i).msg)
	if m.flags--; m.flags&busyBits == 0 {
		s.cond.Broadcast()
	}
}

func (s *Store) fill(ctx context.Context, st *settling, v *view, owned map[mailspine.MsgID]bool) error {
	in := st.in
	if len(in.Results) != int(v.open) {
		return fmt.Errorf("%w: %d results, %d recipients", errResults, len(in.Results), v.open)
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
		item: uint64(v.id), epoch: v.epoch, stamp: s.wall(s.now()), delay: sched.Span(in.Delay), attempts: uint64(v.tries) + 1,
	}
	st.entry.open = left
	if left == 0 {
		if st.entry.done = v.msg; v.msg == "" {
			var err error
			switch st.entry.done, err = readID(v.put); {
			case err != nil && !damage(err):
				// Without its ID a message that is finished could be put again.
				return fmt.Errorf("filequeue: item %d: %w", v.id, err)
			case err != nil:
				// What was done must not be done again. A second Put of it is less likely.
				s.log.Error("filequeue: the ID of a message that is finished cannot be read, and is not remembered", "item", uint64(v.id), "err", err)
			}
		}
	} else {
		before, err := v.recipients(nil)
		if err != nil {
			return fmt.Errorf("filequeue: item %d: %w", v.id, err)
		}
		if len(before) != int(v.open) {
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
		now := s.advance()
		for i, st := range batch {
			cost := int64(len(st.rec.Meta)) + entryCost
			if len(st.puts) > 0 {
				cost = int64(st.puts[0].offset) + entryCost
			}
			s.unreserve(st.slot)
			var done bool
			if done, st.file = s.settled(st.slot, st.entry, locate(seg, locs[i].Offset, 0), cost, now); done && st.entry.done != "" {
				s.tombs.bury(st.entry.done, now+int64(queue.TombstoneTTL))
			}
			for _, p := range st.puts {
				s.insert(p.put, locate(seg, locs[i].Offset, p.offset), p.cost, now)
			}
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

// settled ends the lease of a busy item. Its delay begins at base. If its message is
// finished, done is true and file its body, as in removeItem. mu is held.
func (s *Store) settled(i slot, e *settleEntry, at location, cost, base int64) (done bool, file uint64) {
	it := s.items.At(i)
	it.epoch, it.tries = e.epoch, triesOf(e.attempts)
	if e.open == 0 {
		return s.removeItem(i)
	}
	s.live -= int64(it.cost) * costUnit
	it.seg, it.offset, it.cost, it.open = at.seg, at.offset, costOf(cost), uint32(e.open)
	s.live += int64(it.cost) * costUnit
	s.setReason(i, "")
	delete(s.ids, i)
	s.sched.Wait(i, base+e.delay)
	return false, 0
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
	why = cutReason(why)
	var errs []error
	for part := range slices.Chunk(tokens, maxAbandon) {
		if err := s.abandon(sched.Span(delay), why, part); err != nil {
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
	var items []slot
	s.mu.Lock()
	for _, t := range tokens {
		i := s.reserve(t)
		if i == 0 {
			continue
		}
		if s.sched.FromHold(i) { // for the journal it was held all the time
			s.sched.Hold(i)
			delete(s.ids, i)
			s.unreserve(i)
			continue
		}
		it := s.items.At(i)
		items = append(items, i)
		e.abandon(&abandonEntry{it.id, it.epoch, s.wall(s.now()), delay, why})
	}
	s.mu.Unlock()
	if len(items) == 0 {
		return nil
	}
	apply := func(*segment, []durable.Location) {
		now := s.advance()
		for _, i := range items {
			s.setReason(i, why)
			delete(s.ids, i)
			s.sched.Wait(i, now+delay)
			s.unreserve(i)
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
	s.advance()
	var e encoder
	var recs []durable.Record
	for i := range s.sched.All() {
		if s.sched.State(i) != sched.Ready || !s.sched.Lapsed(i) {
			continue
		}
		it := s.items.At(i)
		e.abandon(&abandonEntry{item: it.id, epoch: it.epoch, stamp: s.wall(s.sched.Due(i)), reason: s.reason(i)})
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
