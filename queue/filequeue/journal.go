package filequeue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/sched"
)

// A segment is one file of the journal.
type segment struct {
	number uint64
	log    *durable.Log

	// guarded by Store.mu
	users int  // readers
	gone  bool // removed; closed when users is 0
}

func segmentName(n uint64) string { return fmt.Sprintf("journal-%010d.log", n) }

func (s *Store) segmentPath(n uint64) string { return filepath.Join(s.dir, segmentName(n)) }

func parseSegment(name string) (uint64, bool) {
	d, ok := strings.CutPrefix(name, "journal-")
	if !ok {
		return 0, false
	}
	if d, ok = strings.CutSuffix(d, ".log"); !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(d, 10, 32) // 128 PiB of journal, with the default size of segments
	return n, err == nil && segmentName(n) == name
}

func (s *Store) logOptions(strict bool) durable.LogOptions {
	o := durable.LogOptions{Magic: magic, Version: formatVersion, Strict: strict}
	if s.opt.testHook != nil {
		o.Written = func() { s.hook("journal.written") }
	}
	return o
}

// load reads the journal.
func (s *Store) load() error {
	list, err := s.fsys.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var numbers []uint64
	for _, e := range list { // sorted by name, and so by number
		if n, ok := parseSegment(e.Name()); ok {
			numbers = append(numbers, n)
		} else if strings.HasSuffix(e.Name(), durable.TempSuffix) {
			if err := s.fsys.Remove(filepath.Join(s.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	r := &replay{s: s, now: s.now()}
	for i, n := range numbers {
		if i > 0 && n != numbers[i-1]+1 {
			return fmt.Errorf("%s is missing between %s and %s", segmentName(numbers[i-1]+1), segmentName(numbers[i-1]), segmentName(n))
		}
		seg := &segment{number: n}
		r.seg = seg
		last := i == len(numbers)-1
		if seg.log, err = durable.OpenLog(s.fsys, s.segmentPath(n), s.logOptions(!last), r.record); err != nil {
			return err
		}
		s.segments = append(s.segments, seg)
	}
	if err := s.loadBodies(); err != nil {
		return err
	}
	s.genera++
	first := s.opening()
	old := false
	if len(numbers) > 0 {
		if old, err = s.olderHead(); err != nil {
			return err
		}
	}
	if len(numbers) == 0 {
		// The directory may be there only because an earlier process was killed
		// before its name was synced.
		if err := s.fsys.SyncDir(filepath.Dir(s.dir)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		l, err := durable.CreateLog(s.fsys, s.segmentPath(1), s.logOptions(false), first)
		if err != nil {
			return err
		}
		s.segments = []*segment{{number: 1, log: l}}
	} else if old {
		n := numbers[len(numbers)-1] + 1
		l, err := durable.CreateLog(s.fsys, s.segmentPath(n), s.logOptions(false), first)
		if err != nil {
			return err
		}
		s.segments = append(s.segments, &segment{number: n, log: l})
	} else if _, err := s.segments[len(s.segments)-1].log.Append(first); err != nil {
		return err
	}
	s.head = s.segments[len(s.segments)-1]
	for _, seg := range s.segments[:len(s.segments)-1] {
		s.sealed += seg.log.Size()
	}
	s.epoch = s.genera << 40
	for s.advance(); s.sched.Behind(); {
		s.advance()
	}
	return nil
}

// olderHead reports whether the last segment is of an older version. Nothing of
// this version is appended to it: the program that wrote it must not take that for damage.
func (s *Store) olderHead() (bool, error) {
	f, err := s.fsys.OpenFile(s.segments[len(s.segments)-1].log.Name(), os.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var h [12]byte // the magic, and the version
	if _, err := f.ReadAt(h[:], 0); err != nil {
		return false, err
	}
	return binary.LittleEndian.Uint32(h[8:]) < formatVersion, nil
}

// opening is the record that begins a process's life, or a segment.
func (s *Store) opening() durable.Record {
	var e encoder
	e.open(openEntry{generation: s.genera, nextItem: s.nextItem, nextFile: s.files.Load(), stamp: s.wall(s.now())})
	return durable.Record{Meta: e.b}
}

// loadBodies removes what nobody refers to, and complains about what is missing.
func (s *Store) loadBodies() error {
	list, err := s.fsys.ReadDir(filepath.Join(s.dir, bodyDir))
	if err != nil {
		return err
	}
	wanted := map[string]slot{}
	for m, file := range s.bodies {
		wanted[filepath.Base(s.bodyName(file))] = m
	}
	for _, e := range list {
		if wanted[e.Name()] == 0 {
			if err := durable.RemoveAll(s.fsys, filepath.Join(s.dir, bodyDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		delete(wanted, e.Name())
	}
	for name, m := range wanted {
		// Somebody else removed it: nothing here does. The message can be listed,
		// and reports can be made of it, so it is kept.
		s.mu.Lock()
		at := s.keep(s.messages.At(m).loc)
		s.mu.Unlock()
		id, err := readID(at)
		s.release(at)
		s.log.Error("filequeue: the body of a message is missing", "id", id, "file", name, "err", err)
	}
	return nil
}

// append appends records, and calls apply, with mu held, once they are
// durable. After an error they are not there, unless the store has failed.
func (s *Store) append(recs []durable.Record, apply func(seg *segment, locs []durable.Location)) error {
	if err := s.failure(); err != nil {
		return err
	}
	s.jmu.RLock()
	seg := s.head
	if seg.log.Size() > maxOffset {
		s.jmu.RUnlock()
		s.rotate()
		return fmt.Errorf("filequeue: %s is full, and no new segment can be begun", seg.log.Name())
	}
	locs, err := seg.log.Append(recs...)
	if err == nil {
		s.hook("journal.durable")
		s.mu.Lock()
		apply(seg, locs)
		over := s.overgrown()
		s.mu.Unlock()
		if over {
			s.wakeCompactor()
		}
		s.full.Store(false)
	}
	full := seg.log.Size() >= s.opt.SegmentSize
	s.jmu.RUnlock()
	switch {
	case errors.Is(err, durable.ErrFailed):
		s.fail(err)
		return s.failure()
	case err != nil:
		s.full.Store(errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT))
		return err
	case full && s.rotating.CompareAndSwap(false, true):
		// One is enough: each that waited for jmu would stop the appenders once more.
		s.rotate()
		s.rotating.Store(false)
	}
	return nil
}

// rotate begins a new segment, if the head is full. If that fails the old one goes on.
func (s *Store) rotate() {
	s.jmu.Lock()
	defer s.jmu.Unlock()
	// Whose sync failed may not have told the store yet. Nothing may follow a
	// segment with a tail that may be torn.
	if s.head.log.Size() < s.opt.SegmentSize || s.failure() != nil || s.head.log.Err() != nil {
		return
	}
	s.mu.Lock()
	first := s.opening()
	s.mu.Unlock()
	n := s.head.number + 1
	l, err := durable.CreateLog(s.fsys, s.segmentPath(n), s.logOptions(false), first)
	if errors.Is(err, durable.ErrFailed) {
		// The segment may be there or not; nothing must be written behind its back.
		s.fail(err)
		return
	}
	if err != nil {
		s.log.Warn("filequeue: no new segment of the journal can be begun; the old one goes on", "file", s.segmentPath(n), "err", err)
		return
	}
	s.mu.Lock()
	s.sealed += s.head.log.Size()
	s.head = &segment{number: n, log: l}
	s.segments = append(s.segments, s.head)
	s.mu.Unlock()
	s.hook("journal.rotated")
}

// entryCost is what an entry takes besides its content at most, in octets: its
// record's header, its kind and length.
const entryCost = 48

// A replay applies records to a store that is being opened.
type replay struct {
	s   *Store
	seg *segment
	now int64
}

func (r *replay) record(loc durable.Location, meta []byte) error {
	err := eachEntry(meta, func(offset int, kind byte, d *decoder) error {
		cost := int64(len(d.b)) + entryCost
		at := locate(r.seg, loc.Offset, uint32(offset))
		switch kind {
		case kindOpen:
			o := d.open()
			r.s.genera = max(r.s.genera, o.generation)
			r.s.nextItem = max(r.s.nextItem, o.nextItem)
			r.s.files.Store(max(r.s.files.Load(), o.nextFile))
		case kindPut:
			p := d.putHead()
			if d.err != nil {
				return d.err
			}
			if p.body.headOff > uint64(loc.BodyLen) || p.body.headLen > uint64(loc.BodyLen)-p.body.headOff ||
				p.body.fileOff < 0 || p.body.fileOff > p.body.fileSize {
				return errDecode
			}
			r.put(p, at, cost+int64(p.body.headLen))
		case kindSettle:
			r.settle(d.settleHead(), at, cost)
		case kindAbandon:
			r.abandon(d.abandon())
		case kindControl:
			r.control(d.control())
		case kindGraves:
			for _, g := range d.graves() {
				r.bury(g)
			}
		default:
			return fmt.Errorf("%w: unknown entry %q", errDecode, kind)
		}
		return d.err
	})
	if err != nil {
		return fmt.Errorf("%s, record at octet %d: %w", segmentName(r.seg.number), loc.Offset, err)
	}
	return nil
}

// base returns when a delay began whose stamp is given. If the wall clock was set back
// since, it begins now, so that nobody waits longer than the delay.
func (r *replay) base(stamp int64) int64 {
	return r.now - max(0, r.s.wall(r.now)-stamp)
}

func (r *replay) put(p *putEntry, at location, cost int64) {
	s := r.s
	// A message that the compactor has rewritten is known by its items. IDs of new ones are higher than all before, as a rule.
	for k := range p.items {
		if p.items[k].id > s.nextItem {
			continue
		}
		if i := s.item(queue.ItemID(p.items[k].id)); i != 0 {
			for i := range s.each(s.messages.At(s.items.At(i).msg)) {
				s.removeItem(i)
			}
		}
	}
	s.insert(p, at, cost, r.base(p.stamp))
	s.files.Store(max(s.files.Load(), p.body.file))
	for i := range p.items {
		s.nextItem = max(s.nextItem, p.items[i].id)
	}
}

func (r *replay) settle(e *settleEntry, at location, cost int64) {
	s := r.s
	finished := true
	if i := s.item(queue.ItemID(e.item)); i != 0 {
		done, _ := s.settled(i, e, at, cost, r.base(e.stamp))
		finished = done
	}
	if e.done != "" && finished {
		r.bury(grave{e.done, e.stamp})
	}
}

func (r *replay) abandon(e *abandonEntry) {
	s := r.s
	i := s.item(queue.ItemID(e.item))
	if i == 0 || s.sched.State(i) == sched.Held {
		return
	}
	s.setReason(i, e.reason)
	s.sched.Wait(i, r.base(e.stamp)+e.delay)
}

func (r *replay) control(e *controlEntry) {
	s := r.s
	for _, it := range e.items {
		finished := true
		if i := s.item(queue.ItemID(it.id)); i != 0 {
			finished, _ = s.control(i, e.op, e.text, r.base(e.stamp))
		}
		if e.op == queue.OpDelete && it.done != "" && finished {
			r.bury(grave{it.done, e.stamp})
		}
	}
}

func (r *replay) bury(g grave) {
	if end := r.base(g.stamp) + int64(queue.TombstoneTTL); end >= r.now {
		r.s.tombs.bury(g.id, end)
	}
}
