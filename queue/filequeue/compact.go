package filequeue

import (
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// The compactor copies this much at a time, so that those who wait for a sync
// wait for no more.
const (
	copyMessages = 256
	copyBytes    = 1 << 20
	copyGraves   = 10_000
)

// overgrown reports whether the journal is larger than it should be; mu is held.
func (s *Store) overgrown() bool {
	if len(s.segments) < 2 {
		return false
	}
	total := s.sealed + s.segments[len(s.segments)-1].log.Size()
	return total > 2*(s.live+graveCost*int64(s.tombs.len()))+2*s.opt.SegmentSize
}

func (s *Store) wakeCompactor() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// compact runs as long as the store is open.
func (s *Store) compact() {
	for {
		select {
		case <-s.done:
			return
		case <-s.kick:
		}
		// Each segment that there is now is emptied at most once, so that an
		// estimate that is wrong costs no more than that.
		s.mu.Lock()
		n := len(s.segments)
		s.mu.Unlock()
		for range n {
			s.mu.Lock()
			if s.closed || s.failed != nil || !s.overgrown() {
				s.mu.Unlock()
				break
			}
			seg := s.segments[0]
			s.mu.Unlock()
			if err := s.evacuate(seg); err != nil {
				if errors.Is(err, queue.ErrClosed) {
					return
				}
				s.log.Warn("filequeue: a segment of the journal cannot be emptied; it stays for now", "file", seg.log.Name(), "err", err)
				select { // not again at once: the disk may be full
				case <-s.done:
					return
				case <-time.After(time.Minute):
					s.wakeCompactor() // nobody else may, as long as nothing is put
				}
				break
			}
		}
	}
}

// evacuate copies what is alive in the oldest segment to the head, and removes it.
func (s *Store) evacuate(seg *segment) error {
	c := &copier{s: s, seg: seg}
	err := seg.log.Scan(func(loc durable.Location, meta []byte) error {
		return eachEntry(meta, func(offset int, kind byte, d *decoder) error {
			defer func() { d.b = nil }() // not all is read
			switch kind {
			case kindPut:
				return c.message(mailspine.MsgID(d.str()), locate(seg, loc.Offset, uint32(offset)))
			case kindSettle:
				if e := d.settleHead(); e.done != "" {
					return c.grave(grave{e.done, e.stamp})
				}
			case kindControl:
				e := d.control()
				for _, it := range e.items {
					if it.done == "" {
						continue
					}
					if err := c.grave(grave{it.done, e.stamp}); err != nil {
						return err
					}
				}
			case kindGraves:
				for _, g := range d.graves() {
					if err := c.grave(g); err != nil {
						return err
					}
				}
			}
			return nil
		})
	})
	if err == nil {
		err = c.flush()
	}
	if err != nil {
		return err
	}
	s.hook("compact.copied")
	if err := s.fsys.Remove(seg.log.Name()); err != nil {
		return err
	}
	s.mu.Lock()
	s.segments = s.segments[1:]
	s.sealed -= seg.log.Size()
	seg.gone = true
	if seg.users == 0 {
		seg.log.Close()
	}
	s.mu.Unlock()
	s.hook("compact.removed")
	// A segment that is begun syncs the directory too. When that fails it must not be synced again and called good.
	s.jmu.RLock()
	defer s.jmu.RUnlock()
	if err := s.failure(); err != nil {
		return err
	}
	// The next segment must not go before this one: what is dead here may have
	// died there.
	if err := s.fsys.SyncDir(s.dir); err != nil {
		err = fmt.Errorf("%w: %w", durable.ErrFailed, err)
		s.fail(err)
		return err
	}
	return nil
}

// A copier gathers what is alive in a segment.
type copier struct {
	s      *Store
	seg    *segment
	list   []copied
	size   int64
	graves []grave
}

// A copied is a message, and where its put entry was when it was found. If it is not
// there any more it is another message, or needs no copy.
type copied struct {
	msg slot
	loc location
}

func (c *copier) message(id mailspine.MsgID, at location) error {
	s := c.s
	s.mu.Lock()
	alive := slot(0)
	for mi := range s.byMsg.Find(uint64(s.hashID(id))) {
		if m := s.messages.At(mi); m.loc == at {
			alive = mi
			c.size += int64(m.cost)
		}
	}
	s.mu.Unlock()
	if alive == 0 {
		return nil
	}
	c.list = append(c.list, copied{alive, at})
	if len(c.list) >= copyMessages || c.size >= copyBytes {
		return c.flush()
	}
	return nil
}

func (c *copier) grave(g grave) error {
	s := c.s
	s.mu.Lock()
	now := s.now()
	alive := s.wall(now)-g.stamp <= int64(queue.TombstoneTTL) && s.tombs.has(g.id, now)
	s.mu.Unlock()
	if !alive {
		return nil
	}
	c.graves = append(c.graves, g)
	if len(c.graves) >= copyGraves {
		return c.flush()
	}
	return nil
}

func (c *copier) flush() error {
	if len(c.graves) > 0 {
		var e encoder
		e.graves(c.graves)
		c.graves = c.graves[:0]
		if err := c.s.append([]durable.Record{{Meta: e.b}}, func(*segment, []durable.Location) {}); err != nil {
			return err
		}
	}
	list := c.list
	c.list, c.size = c.list[:0], 0
	late, err := c.copy(list, false)
	for _, x := range late {
		// One at a time: nobody is waited for while others wait for us.
		if err == nil {
			_, err = c.copy([]copied{x}, true)
		}
	}
	return err
}

// A move is a message that is being copied.
type move struct {
	msg   slot
	from  spot
	views []view
	put   *putEntry
	rec   durable.Record
}

// find returns a message that is still where it was found, or nil. mu is held.
func (c *copier) find(x copied) *message {
	if !c.s.messages.Has(x.msg) {
		return nil
	}
	if m := c.s.messages.At(x.msg); m.loc == x.loc {
		return m
	}
	return nil
}

// copy copies messages that are alive in the segment. Those that somebody is
// settling at the moment are returned, or waited for.
func (c *copier) copy(list []copied, wait bool) (late []copied, err error) {
	s := c.s
	var moves []*move
	s.mu.Lock()
	for _, x := range list {
		m := c.find(x)
		for wait && m != nil && m.flags&busyBits > 0 {
			s.cond.Wait()
			m = c.find(x)
		}
		if m == nil {
			continue
		}
		if m.flags&busyBits > 0 {
			late = append(late, x)
			continue
		}
		m.flags |= isMoving
		mv := &move{msg: x.msg, from: s.keep(m.loc)}
		now := s.now()
		for i := range s.each(m) {
			mv.views = append(mv.views, s.view(i, now))
		}
		moves = append(moves, mv)
	}
	closed := s.closed
	s.mu.Unlock()
	if closed {
		err = queue.ErrClosed
	}
	var recs []durable.Record
	for _, mv := range moves {
		if err == nil {
			err = mv.read(s)
		}
		recs = append(recs, mv.rec)
		s.release(mv.from)
		s.drop(mv.views...)
	}
	applied := false
	if err == nil && len(moves) > 0 {
		err = s.append(recs, func(seg *segment, locs []durable.Location) {
			applied = true
			for i, mv := range moves {
				mv.apply(s, locate(seg, locs[i].Offset, 0))
			}
			s.cond.Broadcast()
		})
	}
	if !applied {
		s.mu.Lock()
		for _, mv := range moves {
			s.messages.At(mv.msg).flags &^= isMoving
		}
		s.cond.Broadcast()
		s.mu.Unlock()
	}
	return late, err
}

// read makes a put entry of a message as it is now.
func (mv *move) read(s *Store) error {
	full, err := mv.from.seg.log.ReadRecord(mv.from.offset)
	if err != nil {
		return err
	}
	d, err := entryAt(full.Meta, mv.from.entry, kindPut)
	if err != nil {
		return err
	}
	p, err := d.put()
	if err != nil {
		return err
	}
	if p.body.headOff > uint64(len(full.Body)) || p.body.headLen > uint64(len(full.Body))-p.body.headOff {
		return errDecode
	}
	old := p.items
	p.items = make([]putItem, len(mv.views))
	p.stamp = s.wall(s.now())
	for i := range mv.views {
		v := &mv.views[i]
		rcpts, err := v.recipients(&putEntry{env: p.env, items: old})
		if err != nil {
			return err
		}
		p.items[i] = putItem{
			id: uint64(v.id), route: string(v.route), attempts: uint64(v.tries), epoch: v.epoch, held: v.held, reason: v.reason, rcpts: rcpts, weight: v.weight,
		}
		// A lease ends with the process, so what is leased was due at some time past; when,
		// does not matter then. Negative delays keep the order of what is overdue.
		if v.status == sched.Waiting || v.status == sched.Ready {
			p.items[i].delay = int64(v.due)
		}
	}
	p.priority = p.env.Priority
	head := full.Body[p.body.headOff:][:p.body.headLen]
	p.body.headOff = 0
	var e encoder
	e.put(p)
	mv.put, mv.rec = p, durable.Record{Meta: e.b, Body: head}
	return nil
}

// apply is called with mu held when the copy is durable.
func (mv *move) apply(s *Store, at location) {
	m := s.messages.At(mv.msg)
	m.flags &^= isMoving
	cost := int64(len(mv.rec.Meta)+len(mv.rec.Body)) + entryCost
	s.live += cost - int64(m.cost)
	m.loc, m.cost = at, uint32(cost)
	for i := range s.each(m) {
		it := s.items.At(i)
		s.live -= int64(it.cost) * costUnit
		it.seg, it.offset, it.cost = 0, 0, 0
	}
}
