package filequeue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"time"

	"github.com/mailspine/mailspine/internal/durable"
)

// damagedDir is where repairs keep what was damaged, each in a directory of its own.
const damagedDir = "damaged"

// How far numbers are moved on when records are lost, which may have named larger ones. Generations
// have 24 bits, and one process uses one.
const (
	slack           = 1 << 20
	slackGeneration = 64
	maxGeneration   = 1<<24 - 2
)

// repair makes a store of what is whole. Each step can be the last, and be done again:
// what is damaged is kept first, and each segment is replaced in one step.
func (d *doctor) repair() error {
	if err := d.save(); err != nil {
		return fmt.Errorf("keeping what is damaged: %w", err)
	}
	d.hook("doctor.saved")
	// The last segment comes first: it gets the record that keeps numbers from being used again, and while any
	// other is still damaged a second repair knows that it is needed.
	if n := len(d.segments); n > 0 {
		if err := d.rewrite(d.segments[n-1], true); err != nil {
			return err
		}
	}
	for _, n := range d.missing {
		l, err := durable.CreateLog(d.fsys, d.path(segmentName(n)), d.logOptions())
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
		d.hook("doctor.filled")
	}
	if len(d.segments) == 0 {
		l, err := durable.CreateLog(d.fsys, d.path(segmentName(1)), d.logOptions(), d.opening())
		if err != nil {
			return err
		}
		return errors.Join(l.Close(), d.dropFiles())
	}
	for _, seg := range d.segments[:len(d.segments)-1] {
		if seg.broken {
			if err := d.rewrite(seg, false); err != nil {
				return err
			}
		}
	}
	return d.dropFiles()
}

// save keeps the damaged files in damaged/, under second names, and the report with them.
func (d *doctor) save() error {
	if err := durable.MkdirAll(d.fsys, d.path(damagedDir), 0o700); err != nil {
		return err
	}
	// A repair that was killed may have made it without a sync of its name.
	if err := d.fsys.SyncDir(d.dir); err != nil {
		return err
	}
	list, err := d.fsys.ReadDir(d.path(damagedDir))
	if err != nil {
		return err
	}
	n := 0
	for _, e := range list {
		if k, err := strconv.Atoi(e.Name()); err == nil {
			n = max(n, k)
		}
	}
	dir := path.Join(damagedDir, strconv.Itoa(n+1))
	if err := durable.MkdirAll(d.fsys, d.path(dir, bodyDir), 0o700); err != nil {
		return err
	}
	for i, seg := range d.segments {
		if seg.broken || i == len(d.segments)-1 {
			if err := d.fsys.Link(d.path(seg.name()), d.path(dir, seg.name())); err != nil {
				return err
			}
		}
	}
	for _, f := range d.files {
		err := d.fsys.Link(d.path(bodyDir, f.name), d.path(dir, bodyDir, f.name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := d.fsys.SyncDir(d.path(dir, bodyDir)); err != nil {
		return err
	}
	if err := durable.WriteFile(d.fsys, d.path(dir, "report.txt"), []byte(d.rep.String()), 0o600); err != nil {
		return err
	}
	d.rep.Saved = dir
	return d.fsys.SyncDir(d.path(dir))
}

// dropFiles takes from bodies/ what is kept in damaged/.
func (d *doctor) dropFiles() error {
	if len(d.files) == 0 {
		return nil
	}
	for _, f := range d.files {
		if err := d.fsys.Remove(d.path(bodyDir, f.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	d.hook("doctor.dropped")
	return d.fsys.SyncDir(d.path(bodyDir))
}

// opening is a record of numbers that nothing lost can have used.
func (d *doctor) opening() durable.Record {
	var e encoder
	e.open(openEntry{
		generation: min(d.top.generation+slackGeneration, maxGeneration), nextItem: d.top.nextItem + slack, nextFile: d.top.nextFile + slack, stamp: time.Now().UnixNano(),
	})
	return durable.Record{Meta: e.b}
}

// rewriteBatch is how much is written with one sync, in octets.
const rewriteBatch = 1 << 20

// rewrite puts a segment with what is whole in the place of a damaged one.
func (d *doctor) rewrite(seg *chartSegment, last bool) error {
	name := d.path(seg.name())
	tmp := name + ".repair" + durable.TempSuffix
	for _, old := range []string{tmp, tmp + durable.TempSuffix} { // of a repair that was interrupted
		if err := d.fsys.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	l, err := durable.CreateLog(d.fsys, tmp, d.logOptions())
	if err != nil {
		return err
	}
	err = d.copy(seg, l)
	if err == nil && last {
		_, err = l.Append(d.opening())
	}
	if err = errors.Join(err, l.Close()); err != nil {
		d.fsys.Remove(tmp) // Open does it otherwise
		return err
	}
	d.hook("doctor.copied")
	if err := d.fsys.Rename(tmp, name); err != nil {
		return err
	}
	d.hook("doctor.renamed")
	return d.fsys.SyncDir(d.dir)
}

// copy appends to a log the records of a segment that are whole.
func (d *doctor) copy(seg *chartSegment, l *durable.Log) error {
	var batch []durable.Record
	size := 0
	flush := func() error {
		_, err := l.Append(batch...)
		batch, size = batch[:0], 0
		return err
	}
	err := durable.Salvage(d.fsys, d.path(seg.name()), d.logOptions(), func(p *durable.Piece) error {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		if !p.Whole || seg.torn > 0 && p.Offset >= seg.torn {
			return nil
		}
		meta := d.keep(p)
		if len(meta) == 0 {
			return nil
		}
		body, err := p.Body() // all of it: entries know places in it
		if err != nil {
			return err
		}
		batch = append(batch, durable.Record{Meta: meta, Body: body})
		if size += len(meta) + len(body); size >= rewriteBatch {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	return err
}

// keep returns the entries of a record that stay.
func (d *doctor) keep(p *durable.Piece) []byte {
	var meta []byte
	for _, e := range splitEntries(p.Meta) {
		v, err := decodeEntry(e, p.BodyLen)
		if err != nil {
			continue
		}
		switch v := v.(type) {
		case *putEntry:
			if m := d.messages[v.env.ID]; hurts(p, v) || m != nil && m.hurt != "" {
				continue
			}
		case *settleEntry:
			if d.orphaned(v.item) && len(v.rcpts) > 0 {
				continue
			}
		case *abandonEntry:
			if d.orphaned(v.item) {
				continue
			}
		}
		meta = append(meta, e.raw...)
	}
	return meta
}

// orphaned reports whether an item is of a message that is lost.
func (d *doctor) orphaned(item uint64) bool {
	if m := d.items[item]; m != nil {
		return m.hurt != ""
	}
	_, stray := d.strays[item]
	return stray
}

// A contextReader reads as long as its context lasts.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
