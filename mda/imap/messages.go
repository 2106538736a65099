package imap

import (
	"errors"
	"io"
	"slices"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"

	"github.com/mailspine/mailspine/mda/mailbox"
)

// issued is the answer to a command that some messages of a set were not there for. A UID that is not there is no mistake (RFC
// 9051 section 6.4.9).
func issued(set imap.NumSet, gone int) error {
	if _, uids := set.(imap.UIDSet); uids || gone == 0 {
		return nil
	}
	return no("EXPUNGEISSUED", "%d messages are not there any more", gone)
}

// chunks calls f with at most as many UIDs as the store takes.
func chunks(uids []mailbox.UID, f func([]mailbox.UID) error) error {
	for part := range slices.Chunk(uids, mailbox.MaxUIDs/10) {
		if err := f(part); err != nil {
			return err
		}
	}
	return nil
}

// Fetch reads messages.
func (x *session) Fetch(w *imapserver.FetchWriter, set imap.NumSet, o *imap.FetchOptions) error {
	if len(o.BinarySection) > 0 || len(o.BinarySectionSize) > 0 {
		return &imap.Error{Type: imap.StatusResponseTypeBad, Text: "BINARY is not available"}
	}
	v, unlock, err := x.selected()
	if err != nil {
		return err
	}
	defer unlock()
	at, gone, err := v.resolve(set)
	if err != nil {
		return err
	}
	seen := map[mailbox.UID]bool{} // set by this command; dirty until the client is told
	if !v.readOnly && slices.ContainsFunc(o.BodySection, func(s *imap.FetchItemBodySection) bool { return !s.Peek }) {
		var unseen []mailbox.UID
		for _, i := range at {
			if !mailbox.HasFlag(v.msgs[i].Flags, mailbox.Seen) {
				unseen = append(unseen, v.msgs[i].UID)
			}
		}
		err := chunks(unseen, func(part []mailbox.UID) error {
			res, err := v.box.SetFlags(x.ctx, part, mailbox.FlagChange{Flags: []mailbox.Flag{mailbox.Seen}})
			for _, m := range res.Changed {
				v.know(m)
				v.dirty[m.UID], seen[m.UID] = true, true
			}
			return err
		})
		if err != nil {
			return x.fail(err)
		}
	}
	for _, i := range at {
		if err := x.ctx.Err(); err != nil {
			return x.fail(err)
		}
		m := v.msgs[i]
		ok, err := x.fetch(w, v, uint32(i+1), m, o, seen[m.UID])
		if err != nil {
			return err
		}
		if !ok {
			gone++
		}
	}
	return issued(set, gone)
}

// fetch writes what is asked of one message; false: it is not there any more.
func (x *session) fetch(w *imapserver.FetchWriter, v *view, seq uint32, m mailbox.MessageInfo, o *imap.FetchOptions, seen bool) (bool, error) {
	var body mailbox.Body
	var p *part
	var structure imap.BodyStructure
	whole, deep := len(o.BodySection) > 0, o.BodyStructure != nil
	for _, s := range o.BodySection { // BODY[] needs no look into the message, and most others one at its header
		whole = whole && len(s.Part) == 0 && s.Specifier == imap.PartSpecifierNone
		deep = deep || len(s.Part) > 0
	}
	if len(o.BodySection) > 0 || o.Envelope || o.BodyStructure != nil {
		var err error
		if body, err = v.box.Body(x.ctx, m.UID); errors.Is(err, mailbox.ErrNoMessage) {
			return false, nil
		} else if err != nil {
			return false, x.fail(err)
		}
		defer body.Close()
		if whole && !o.Envelope && o.BodyStructure == nil {
			p = &part{end: body.Size()}
		} else if p, err = scan(body, body.Size(), deep); err != nil {
			return false, x.fail(err)
		}
		if o.BodyStructure != nil {
			if structure, err = p.structure(body); err != nil {
				return false, x.fail(err)
			}
		}
	}
	r := w.CreateMessage(seq)
	if o.UID {
		r.WriteUID(imap.UID(m.UID))
	}
	if o.Flags || seen {
		r.WriteFlags(imapFlags(m.Flags))
	}
	if o.RFC822Size {
		r.WriteRFC822Size(m.Size)
	}
	if o.InternalDate {
		r.WriteInternalDate(m.InternalDate)
	}
	if o.Envelope {
		r.WriteEnvelope(p.envelope())
	}
	if structure != nil {
		r.WriteBodyStructure(structure)
	}
	for _, s := range o.BodySection {
		src, size := p.section(s).open(body, s.Partial)
		lit := r.WriteBodySection(s, size)
		n, err := io.Copy(lit, src)
		if err == nil && n != size {
			err = io.ErrUnexpectedEOF
		}
		if err = errors.Join(err, lit.Close()); err != nil {
			// The client was promised more octets: there is no way on.
			r.Close()
			x.conn.Close()
			return false, err
		}
	}
	err := r.Close()
	if err == nil && (o.Flags || seen) {
		delete(v.dirty, m.UID)
	}
	return true, err
}

var errReadOnly = no("", "The mailbox is read-only (EXAMINE)")

// Store changes flags.
func (x *session) Store(w *imapserver.FetchWriter, set imap.NumSet, change *imap.StoreFlags, _ *imap.StoreOptions) error {
	v, unlock, err := x.selected()
	if err != nil {
		return err
	}
	defer unlock()
	if v.readOnly {
		return errReadOnly
	}
	flags, err := storeFlags(change.Flags)
	if err != nil {
		return x.fail(err)
	}
	at, gone, err := v.resolve(set)
	if err != nil {
		return err
	}
	op := map[imap.StoreFlagsOp]mailbox.FlagOp{imap.StoreFlagsSet: mailbox.ReplaceFlags, imap.StoreFlagsAdd: mailbox.AddFlags, imap.StoreFlagsDel: mailbox.RemoveFlags}[change.Op]
	err = chunks(v.uids(at), func(part []mailbox.UID) error {
		res, err := v.box.SetFlags(x.ctx, part, mailbox.FlagChange{Op: op, Flags: flags})
		for _, m := range res.Changed {
			// A client that wants no reply works out the flags by itself. It is told if they are
			// not what it must think (RFC 9051 section 6.4.6): others changed them too.
			i, _ := v.at(m.UID)
			guess, gerr := mailbox.ApplyFlags(v.msgs[i].Flags, op, flags)
			surprise := change.Silent && (v.dirty[m.UID] || gerr != nil || !slices.Equal(guess, m.Flags))
			v.know(m)
			if surprise || !change.Silent {
				v.dirty[m.UID] = true // until it is told, below or after the command
			}
		}
		return err
	})
	if err != nil {
		for _, i := range at { // some may have been changed
			v.dirty[v.msgs[i].UID] = true
		}
		return x.fail(err)
	}
	if !change.Silent {
		for _, i := range at {
			m := v.msgs[i]
			r := w.CreateMessage(uint32(i + 1))
			r.WriteUID(imap.UID(m.UID))
			r.WriteFlags(imapFlags(m.Flags))
			if err := r.Close(); err != nil {
				return err
			}
			delete(v.dirty, m.UID)
		}
	}
	return issued(set, gone)
}

// Expunge removes messages with \Deleted: all, or of those in a set. The poll after the command tells the
// client.
func (x *session) Expunge(w *imapserver.ExpungeWriter, set *imap.UIDSet) error {
	v, unlock, err := x.selected()
	if err != nil {
		return err
	}
	defer unlock()
	if v.readOnly {
		if *w == (imapserver.ExpungeWriter{}) { // CLOSE, which removes nothing then (RFC 9051 section 6.4.1)
			return nil
		}
		return errReadOnly
	}
	if set == nil {
		_, err := v.box.Expunge(x.ctx, nil, mailbox.ExpungeOptions{All: true})
		return x.fail(err)
	}
	at, _, err := v.resolve(*set)
	if err != nil {
		return err
	}
	return x.fail(chunks(v.uids(at), func(part []mailbox.UID) error {
		_, err := v.box.Expunge(x.ctx, part, mailbox.ExpungeOptions{})
		return err
	}))
}

// Copy copies messages.
func (x *session) Copy(set imap.NumSet, dest string) (*imap.CopyData, error) {
	v, unlock, err := x.selected()
	if err != nil {
		return nil, err
	}
	defer unlock()
	at, gone, err := v.resolve(set)
	if err != nil {
		return nil, err
	}
	if err := issued(set, gone); err != nil { // all or nothing (RFC 9051 section 6.4.7)
		return nil, err
	}
	if len(at) == 0 {
		return nil, nil
	}
	c, err := v.box.CopyTo(x.ctx, v.uids(at), dest)
	if err != nil {
		return nil, x.tryCreate(err)
	}
	return copyData(c), nil
}

func (x *session) tryCreate(err error) error {
	if errors.Is(err, mailbox.ErrNoMailbox) {
		return no(imap.ResponseCodeTryCreate, "There is no such mailbox")
	}
	return x.fail(err)
}

// copyData is what COPYUID tells; nil: nothing was copied.
func copyData(c mailbox.Copied) *imap.CopyData {
	if len(c.Source) == 0 {
		return nil
	}
	d := &imap.CopyData{UIDValidity: c.UIDValidity}
	for i := range c.Source {
		d.SourceUIDs.AddNum(imap.UID(c.Source[i]))
		d.DestUIDs.AddNum(imap.UID(c.Dest[i]))
	}
	return d
}

// Move moves messages. The poll after the command tells the client that they are gone.
func (x *session) Move(w *imapserver.MoveWriter, set imap.NumSet, dest string) error {
	v, unlock, err := x.selected()
	if err != nil {
		return err
	}
	defer unlock()
	if v.readOnly {
		return errReadOnly
	}
	at, gone, err := v.resolve(set)
	if err != nil {
		return err
	}
	if len(at) > 0 {
		c, err := v.box.MoveTo(x.ctx, v.uids(at), dest)
		if err != nil {
			return x.tryCreate(err)
		}
		if d := copyData(c); d != nil {
			if err := w.WriteCopyData(d); err != nil {
				return err
			}
		}
	}
	return issued(set, gone)
}
