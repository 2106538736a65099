package filequeue

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/queue"
)

// A chart is what a doctor knows of a store: what a store that is opened would
// have, and where that is.
type chart struct {
	segments []*chartSegment
	messages map[mailspine.MsgID]*chartMessage
	items    map[uint64]*chartMessage
	strays   map[uint64]stray // items that something happened to, of messages that are not known
	top      openEntry        // the largest of each number that was seen
	lossy    bool             // records are lost, and with them perhaps messages
	files    []chartFile      // bodies to be kept in damaged/
	missing  []uint64         // numbers of segments
}

type chartSegment struct {
	number uint64
	torn   int64 // where the write begins that was not finished; 0: none
	broken bool  // is to be written anew
}

func (s *chartSegment) name() string { return segmentName(s.number) }

type chartMessage struct {
	id     mailspine.MsgID
	seg    *chartSegment
	offset int64           // of the record
	entry  uint32          // in it
	segs   []*chartSegment // that have entries of it
	items  []chartItem
	body   bodyRef
	hurt   string // why it cannot be delivered
	guess  bool   // it was read from what is no record
}

type chartItem struct {
	id   uint64
	open []int32 // recipients
}

type stray struct {
	segs           []*chartSegment // that have entries of it
	offset, length int64           // of the last of them
}

// with returns a list of segments with one more, if that is not the last of them already.
func with(list []*chartSegment, seg *chartSegment) []*chartSegment {
	if n := len(list); n > 0 && list[n-1] == seg {
		return list
	}
	return append(list, seg)
}

type chartFile struct {
	name string // in bodies/
	size int64
}

// A rawEntry is an entry as it is in a record's meta.
type rawEntry struct {
	offset uint32
	kind   byte
	raw    []byte // all of it
	body   []byte // its content
}

// splitEntries takes meta apart. What does not parse is an entry of kind 0.
func splitEntries(meta []byte) (list []rawEntry) {
	d := decoder{b: meta}
	for len(d.b) > 0 {
		at := len(meta) - len(d.b)
		e := rawEntry{offset: uint32(at), kind: d.byte(), body: d.raw()}
		if d.err != nil {
			return append(list, rawEntry{offset: uint32(at), raw: meta[at:]})
		}
		e.raw = meta[at : len(meta)-len(d.b)]
		list = append(list, e)
	}
	return list
}

// decodeEntry decodes an entry entirely, and returns an *openEntry, *putEntry, *settleEntry,
// *abandonEntry, *controlEntry, or []grave. bodyLen is that of the record's body.
func decodeEntry(e rawEntry, bodyLen int) (any, error) {
	d := decoder{b: e.body}
	var v any
	switch e.kind {
	case kindOpen:
		o := d.open()
		v = &o
	case kindPut:
		p, err := d.put()
		if err != nil {
			return nil, err
		}
		if p.body.headOff > uint64(bodyLen) || p.body.headLen > uint64(bodyLen)-p.body.headOff ||
			p.body.fileOff < 0 || p.body.fileOff > p.body.fileSize {
			return nil, errDecode
		}
		v = p
	case kindSettle:
		v = d.settle()
	case kindAbandon:
		v = d.abandon()
	case kindControl:
		v = d.control()
	case kindGraves:
		v = d.graves()
	default:
		return nil, fmt.Errorf("%w: unknown entry %q", errDecode, e.kind)
	}
	return v, d.err
}

func (d *doctor) logOptions() durable.LogOptions {
	return durable.LogOptions{Magic: magic, Version: formatVersion}
}

// examine reads everything.
func (d *doctor) examine() error {
	d.chart = &chart{messages: map[mailspine.MsgID]*chartMessage{}, items: map[uint64]*chartMessage{}, strays: map[uint64]stray{}}
	list, err := d.fsys.ReadDir(d.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if n, ok := parseSegment(e.Name()); ok {
			d.segments = append(d.segments, &chartSegment{number: n})
		} else if strings.HasSuffix(e.Name(), durable.TempSuffix) {
			d.found(Finding{Severity: Note, Kind: KindOrphan, File: e.Name(), Text: "a file that was being made; Open removes it"})
		}
	}
	d.rep.Segments = len(d.segments)
	for i, seg := range d.segments {
		if i > 0 {
			if err := d.between(d.segments[i-1].number, seg.number); err != nil {
				return err
			}
		}
		if err := d.segment(seg, i == len(d.segments)-1); err != nil {
			return err
		}
	}
	if err := d.checkFiles(); err != nil {
		return err
	}
	return d.conclude()
}

// maxMissing is how many segments in a row can be missing for a repair.
const maxMissing = 1000

func (d *doctor) between(a, b uint64) error {
	if b == a+1 {
		return nil
	}
	if b-a > maxMissing {
		return fmt.Errorf("%d segments are missing between %s and %s: one of them is not of this store", b-a-1, segmentName(a), segmentName(b))
	}
	for n := a + 1; n < b; n++ {
		d.lossy = true
		d.missing = append(d.missing, n)
		d.found(Finding{
			Severity: Damage, Kind: KindSegment, File: segmentName(n), Action: "an empty one takes its place",
			Text: "a segment of the journal is missing: messages in it are lost, and what it said of others is",
		})
	}
	return nil
}

// segment reads a segment of the journal.
func (d *doctor) segment(seg *chartSegment, last bool) error {
	name := d.path(seg.name())
	if last {
		// What a crash has left can only be told from what comes behind it.
		var bad, end int64
		err := durable.Salvage(d.fsys, name, d.logOptions(), func(p *durable.Piece) error {
			end = p.Offset + p.Length
			if p.Whole && p.Batch > bad {
				bad = 0 // what was broken before had been synced
			}
			if p.Damage != "" && bad == 0 {
				bad = p.Offset // 0 again for the header
			}
			return d.ctx.Err()
		})
		if err != nil {
			return err
		}
		if seg.torn = bad; seg.torn > 0 {
			d.found(Finding{
				Severity: Note, Kind: KindTail, File: seg.name(), Offset: seg.torn, Length: end - seg.torn,
				Text: "the last write is not whole, as a crash leaves it; Open cuts it off",
			})
		}
	}
	empty := true
	err := durable.Salvage(d.fsys, name, d.logOptions(), func(p *durable.Piece) error {
		empty = false
		if err := d.ctx.Err(); err != nil {
			return err
		}
		switch {
		case seg.torn > 0 && p.Offset >= seg.torn:
			d.unfinished(seg, p)
		case p.Offset == 0 && p.Damage == "": // the header
		case p.Whole:
			d.rep.Records++
			d.record(seg, p)
		default:
			d.gap(seg, p)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if empty {
		d.lossy, seg.broken = true, true
		d.found(Finding{Severity: Damage, Kind: KindHeader, File: seg.name(), Text: "the segment is empty", Action: "an empty one takes its place"})
	}
	return nil
}

// fileHeader is how many octets the header of a segment has at most.
const fileHeader = 20

// unfinished names the messages in a write that was not finished: if no crash
// was the reason, they are lost.
func (d *doctor) unfinished(seg *chartSegment, p *durable.Piece) {
	for _, e := range splitEntries(p.Meta) {
		if v, err := decodeEntry(e, int(min(p.Length, 1<<30))); err == nil {
			if put, ok := v.(*putEntry); ok {
				d.found(Finding{
					Severity: Note, Kind: KindMessage, File: seg.name(), Offset: p.Offset, Length: p.Length, Message: put.env.ID, Envelope: put.env,
					Guess: !p.Whole, Text: "a message in the write that was not finished: after a crash nobody was told that it is stored",
				})
			}
		}
	}
}

// gap looks at octets that are no record.
func (d *doctor) gap(seg *chartSegment, p *durable.Piece) {
	seg.broken = true
	d.lossy = d.lossy || p.Offset > 0 || p.Length > fileHeader
	f := Finding{Severity: Damage, Kind: KindRecord, File: seg.name(), Offset: p.Offset, Length: p.Length, Text: p.Damage, Action: "left out"}
	if p.Offset == 0 {
		f.Kind = KindHeader
		f.Action = "replaced"
	}
	d.found(f)
	for _, e := range splitEntries(p.Meta) {
		v, err := decodeEntry(e, int(min(p.Length, 1<<30)))
		if err != nil && e.kind == kindPut {
			// Most of it may be right, and its beginning is.
			in := decoder{b: e.body}
			if put := in.putHead(); put.env.ID.Validate() == nil {
				v, err = put, nil
			}
		}
		if err != nil {
			continue
		}
		at := Finding{Severity: Damage, Kind: KindResults, File: seg.name(), Offset: p.Offset, Length: p.Length, Guess: true}
		switch v := v.(type) {
		case *putEntry:
			d.insert(&chartMessage{seg: seg, offset: p.Offset, entry: e.offset, hurt: "its record is damaged", guess: true}, p.Length, v)
		case *settleEntry:
			if m := d.items[v.item]; m != nil {
				at.Message, at.Text = m.id, "the result of a delivery is lost, it may be repeated"
				d.found(at)
			}
		case *controlEntry:
			for _, it := range v.items {
				if m := d.items[it.id]; m != nil {
					at.Message, at.Text = m.id, "a command is lost: "+v.op.String()
					d.found(at)
				}
			}
		case *abandonEntry: // a delay, at most
		}
	}
}

// record applies a record to the chart, as a store does that is opened.
func (d *doctor) record(seg *chartSegment, p *durable.Piece) {
	if p.Damage != "" {
		seg.broken = true
		d.found(Finding{
			Severity: Damage, Kind: KindBody, File: seg.name(), Offset: p.Offset, Length: p.Length, Text: p.Damage,
			Action: "messages with content there are left out",
		})
	}
	for _, e := range splitEntries(p.Meta) {
		v, err := decodeEntry(e, p.BodyLen)
		if err != nil {
			seg.broken, d.lossy = true, true
			d.found(Finding{
				Severity: Damage, Kind: KindEntry, File: seg.name(), Offset: p.Offset, Length: p.Length,
				Text: "a record with the right checksum has an entry that makes no sense: " + err.Error(), Action: "left out",
			})
			continue
		}
		switch v := v.(type) {
		case *openEntry:
			d.see(*v)
		case *putEntry:
			m := &chartMessage{seg: seg, offset: p.Offset, entry: e.offset}
			if hurts(p, v) {
				m.hurt = "its content is damaged"
			}
			d.see(openEntry{nextFile: v.body.file})
			d.insert(m, p.Length, v)
		case *settleEntry:
			d.settle(seg, p, v)
		case *controlEntry:
			for _, it := range v.items {
				d.see(openEntry{nextItem: it.id})
				if v.op == queue.OpDelete {
					d.finish(it.id)
				}
			}
		case *abandonEntry:
			d.see(openEntry{generation: v.epoch >> 40, nextItem: v.item})
			if m := d.items[v.item]; m != nil {
				m.segs = with(m.segs, seg)
			} else {
				d.strays[v.item] = stray{with(d.strays[v.item].segs, seg), p.Offset, p.Length}
			}
		}
	}
}

// hurts reports whether the damage of a record is to the content of a message in it.
func hurts(p *durable.Piece, v *putEntry) bool { return p.Damage != "" && v.body.headLen > 0 }

func (d *doctor) see(o openEntry) {
	d.top.generation = max(d.top.generation, o.generation)
	d.top.nextItem = max(d.top.nextItem, o.nextItem)
	d.top.nextFile = max(d.top.nextFile, o.nextFile)
}

// insert takes up a message. One that is hurt does not replace a copy of it that is not: that was
// written before, and the compactor had not got to removing it.
func (d *doctor) insert(m *chartMessage, length int64, p *putEntry) {
	m.id, m.body = p.env.ID, p.body
	old := d.messages[m.id]
	if old != nil && old.hurt == "" && m.hurt != "" {
		if !m.guess {
			old.segs = with(old.segs, m.seg)
		}
		return
	}
	for i := range p.items {
		it := &p.items[i]
		if other := d.items[it.id]; other != nil && other != old {
			switch {
			case m.guess:
				continue
			case other.guess:
				other.items = slices.DeleteFunc(other.items, func(o chartItem) bool { return o.id == it.id })
			default:
				d.found(Finding{
					Severity: Note, Kind: KindEntry, File: m.seg.name(), Offset: m.offset, Length: length, Message: m.id,
					Text: fmt.Sprintf("item %d is of message %q too", it.id, other.id),
				})
				continue
			}
		}
		c := chartItem{id: it.id}
		for _, r := range it.rcpts {
			c.open = append(c.open, int32(r.index))
		}
		m.items = append(m.items, c)
		if !m.guess {
			d.see(openEntry{generation: it.epoch >> 40, nextItem: it.id})
			m.segs = append(m.segs, d.strays[it.id].segs...)
			delete(d.strays, it.id)
		}
	}
	if old != nil {
		for _, it := range old.items {
			delete(d.items, it.id)
		}
		m.segs = append(m.segs, old.segs...)
	}
	if !m.guess {
		m.segs = with(m.segs, m.seg)
	}
	for _, it := range m.items {
		d.items[it.id] = m
	}
	if len(m.items) > 0 || m.guess {
		d.messages[m.id] = m
	} else if old != nil {
		delete(d.messages, m.id)
	}
}

func (d *doctor) settle(seg *chartSegment, p *durable.Piece, e *settleEntry) {
	d.see(openEntry{generation: e.epoch >> 40, nextItem: e.item})
	if g := d.messages[e.done]; g != nil && g.guess && len(g.items) == 0 {
		delete(d.messages, e.done) // as far as is known
	}
	m := d.items[e.item]
	if m == nil {
		if len(e.rcpts) > 0 {
			d.strays[e.item] = stray{with(d.strays[e.item].segs, seg), p.Offset, p.Length}
		} else {
			d.finish(e.item)
		}
		return
	}
	m.segs = with(m.segs, seg)
	i := slices.IndexFunc(m.items, func(it chartItem) bool { return it.id == e.item })
	if len(e.rcpts) > 0 {
		open := m.items[i].open[:0]
		for _, r := range e.rcpts {
			open = append(open, int32(r.index))
		}
		m.items[i].open = open
		return
	}
	d.finish(e.item)
}

// finish takes an item that is done.
func (d *doctor) finish(item uint64) {
	delete(d.strays, item)
	m := d.items[item]
	if m == nil {
		return
	}
	delete(d.items, item)
	m.items = slices.DeleteFunc(m.items, func(it chartItem) bool { return it.id == item })
	if len(m.items) == 0 && d.messages[m.id] == m {
		delete(d.messages, m.id)
	}
}

// checkFiles compares the bodies with what refers to them.
func (d *doctor) checkFiles() error {
	list, err := d.fsys.ReadDir(d.path(bodyDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	sizes := map[string]int64{}
	for _, e := range list {
		fi, err := e.Info()
		if err != nil {
			return err
		}
		sizes[e.Name()] = fi.Size()
		var n uint64
		if k, err := fmt.Sscanf(e.Name(), "%x", &n); err == nil && k == 1 && n < 1<<48 {
			d.see(openEntry{nextFile: n}) // so that no new body takes its name
		}
	}
	var large []*chartMessage
	for _, m := range d.messages {
		if m.body.file != 0 && !m.guess {
			large = append(large, m)
		}
	}
	slices.SortFunc(large, func(a, b *chartMessage) int { return int(min(max(int64(a.body.file)-int64(b.body.file), -1), 1)) })
	for _, m := range large {
		name := fmt.Sprintf("%016x", m.body.file)
		f := Finding{Severity: Damage, Kind: KindFile, File: path.Join(bodyDir, name), Message: m.id}
		size, there := sizes[name]
		delete(sizes, name)
		switch {
		case !there:
			f.Text = "the body of a message is missing"
			if d.lossy {
				f.Text += "; it was delivered, perhaps, and the result is lost"
			}
		case size != m.body.fileSize:
			f.Text = fmt.Sprintf("the body of a message has %d octets, not %d", size, m.body.fileSize)
		default:
			sum, err := d.sum(d.path(bodyDir, name))
			if errors.Is(err, syscall.EIO) { // some disks can at the second time
				sum, err = d.sum(d.path(bodyDir, name))
			}
			if err != nil && !errors.Is(err, syscall.EIO) {
				return err
			}
			if err != nil {
				f.Text = "the body of a message cannot be read: " + err.Error()
			} else if sum != m.body.fileCRC {
				f.Text = "the checksum of a body is wrong"
			}
		}
		if f.Text == "" {
			if m.hurt != "" { // its head is
				d.files = append(d.files, chartFile{name, size})
			}
			continue
		}
		if there {
			f.Action = "kept in damaged/"
			d.files = append(d.files, chartFile{name, size})
		}
		if m.hurt == "" {
			m.hurt = "its content is damaged or missing"
		}
		d.found(f)
	}
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		f := Finding{Severity: Note, Kind: KindOrphan, File: path.Join(bodyDir, name), Text: "a body that no message refers to; Open removes it"}
		if d.lossy || len(d.segments) == 0 || len(d.strays) > 0 {
			f.Severity = Damage
			f.Text, f.Action = "a body that no message refers to; it may be that of a message whose record is lost", "kept in damaged/"
			d.files = append(d.files, chartFile{name, sizes[name]})
		}
		d.found(f)
	}
	list, err = d.fsys.ReadDir(d.path(stageDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(list) > 0 {
		d.found(Finding{
			Severity: Note, Kind: KindOrphan, File: stageDir, Text: fmt.Sprintf("%d messages that had not arrived; Open removes them", len(list)),
		})
	}
	return nil
}

func (d *doctor) sum(name string) (uint32, error) {
	f, err := d.fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h := crc32.New(castagnoli)
	_, err = io.CopyBuffer(h, struct{ io.Reader }{&contextReader{d.ctx, f}}, make([]byte, 256<<10))
	return h.Sum32(), err
}

// conclude counts what is whole, and tells what is lost.
func (d *doctor) conclude() error {
	lost := map[*chartSegment][]*chartMessage{}
	for id, m := range d.messages {
		if m.hurt == "" {
			d.rep.Messages++
			d.rep.Items += int64(len(m.items))
			d.rep.Bytes += m.body.size()
			continue
		}
		lost[m.seg] = append(lost[m.seg], m)
		for _, s := range m.segs {
			s.broken = true
		}
		if m.guess { // it is in no record that is kept
			delete(d.messages, id)
		}
	}
	for _, seg := range d.segments {
		if err := d.tellLost(seg, lost[seg]); err != nil {
			return err
		}
	}
	for _, n := range slices.Sorted(maps.Keys(d.strays)) {
		s := d.strays[n]
		for _, seg := range s.segs {
			seg.broken = true
		}
		d.found(Finding{
			Severity: Missing, Kind: KindMessage, File: s.segs[len(s.segs)-1].name(), Offset: s.offset, Length: s.length, Action: "left out",
			Text: fmt.Sprintf("something happened to item %d, and the message that it is of is not there", n),
		})
	}
	return nil
}

// tellLost reads the envelopes of messages that are lost once more.
func (d *doctor) tellLost(seg *chartSegment, list []*chartMessage) error {
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b *chartMessage) int {
		if a.offset != b.offset {
			return int(min(max(a.offset-b.offset, -1), 1))
		}
		return int(a.entry) - int(b.entry)
	})
	return durable.Salvage(d.fsys, d.path(seg.name()), d.logOptions(), func(p *durable.Piece) error {
		for ; len(list) > 0 && list[0].offset == p.Offset; list = list[1:] {
			m := list[0]
			f := Finding{
				Severity: Missing, Kind: KindMessage, File: seg.name(), Offset: p.Offset, Length: p.Length,
				Message: m.id, Guess: m.guess, Text: "a message is lost: " + m.hurt, Action: "left out of the queue",
			}
			for _, e := range splitEntries(p.Meta) {
				if e.offset != m.entry {
					continue
				}
				if v, err := decodeEntry(e, int(min(p.Length, 1<<30))); err == nil {
					if p, ok := v.(*putEntry); ok {
						f.Envelope = openOnly(p.env, m.items)
					}
				}
			}
			d.found(f)
		}
		return d.ctx.Err()
	})
}

// openOnly leaves of an envelope the recipients that are not done.
func openOnly(env *mailspine.Envelope, items []chartItem) *mailspine.Envelope {
	open := map[int]bool{}
	for _, it := range items {
		for _, i := range it.open {
			open[int(i)] = true
		}
	}
	var rcpts []mailspine.Recipient
	for i, r := range env.Recipients {
		if open[i] {
			rcpts = append(rcpts, r)
		}
	}
	env.Recipients = rcpts
	return env
}
