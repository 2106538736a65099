package imap

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"

	"github.com/mailspine/mailspine/mda/mailbox"
)

// A view is a mailbox as the client of one session knows it: the messages it was told of, in their order, which gives
// the sequence numbers. It is guarded by session.mu.
type view struct {
	box      mailbox.Mailbox
	id       string
	readOnly bool
	modseq   mailbox.ModSeq // of what was pulled
	lost     bool           // the mailbox is deleted

	msgs  []mailbox.MessageInfo // what the client was told of, by UID, with the flags of now
	fresh []mailbox.MessageInfo // what it was not told of yet
	gone  map[mailbox.UID]bool  // of msgs: expunged, and not told so
	dirty map[mailbox.UID]bool  // of msgs: flags changed, and not told so
	saved imap.UIDSet           // SEARCHRES
}

func newView(box mailbox.Mailbox, snap mailbox.Snapshot, readOnly bool) *view {
	return &view{
		box: box, id: snap.Info.ID, readOnly: readOnly, modseq: snap.Info.ModSeq, msgs: snap.Messages,
		gone: map[mailbox.UID]bool{}, dirty: map[mailbox.UID]bool{},
	}
}

func byUID(m mailbox.MessageInfo, uid mailbox.UID) int { return cmp.Compare(m.UID, uid) }

// at returns where a UID is in msgs.
func (v *view) at(uid mailbox.UID) (int, bool) { return slices.BinarySearchFunc(v.msgs, uid, byUID) }

// pull learns what changed in the mailbox. It tells nobody.
func (v *view) pull(ctx context.Context) error {
	if v.lost {
		return nil
	}
	ch, err := v.box.Changes(ctx, v.modseq)
	if errors.Is(err, mailbox.ErrModSeqTooOld) {
		snap, serr := v.box.Snapshot(ctx)
		if serr == nil {
			v.resync(snap)
		}
		err = serr
	} else if err == nil {
		for _, m := range ch.Changed {
			v.change(m)
		}
		for _, uid := range ch.Expunged {
			v.expunge(uid)
		}
		v.modseq = ch.Info.ModSeq
	}
	if errors.Is(err, mailbox.ErrNoMailbox) {
		v.lost = true
		v.fresh = nil
		for _, m := range v.msgs {
			v.gone[m.UID] = true
		}
		return nil
	}
	return err
}

func (v *view) resync(snap mailbox.Snapshot) {
	there := make(map[mailbox.UID]bool, len(snap.Messages))
	for _, m := range snap.Messages {
		there[m.UID] = true
		v.change(m)
	}
	for _, m := range v.msgs {
		if !there[m.UID] {
			v.expunge(m.UID)
		}
	}
	v.fresh = slices.DeleteFunc(v.fresh, func(m mailbox.MessageInfo) bool { return !there[m.UID] })
	v.modseq = snap.Info.ModSeq
}

// change takes in a message that is new or has other flags.
func (v *view) change(m mailbox.MessageInfo) {
	if i, ok := v.at(m.UID); ok {
		if !slices.Equal(v.msgs[i].Flags, m.Flags) {
			v.dirty[m.UID] = true
		}
		v.msgs[i] = m
		return
	}
	if n := len(v.msgs); n > 0 && m.UID <= v.msgs[n-1].UID {
		return // it was expunged, and the client was told
	}
	i, ok := slices.BinarySearchFunc(v.fresh, m.UID, byUID)
	if ok {
		v.fresh[i] = m
		return
	}
	v.fresh = slices.Insert(v.fresh, i, m)
}

func (v *view) expunge(uid mailbox.UID) {
	if _, ok := v.at(uid); ok {
		v.gone[uid] = true
		delete(v.dirty, uid)
		return
	}
	if i, ok := slices.BinarySearchFunc(v.fresh, uid, byUID); ok {
		v.fresh = slices.Delete(v.fresh, i, i+1)
	}
}

// know notes flags that the client learns by the reply to its own command.
func (v *view) know(m mailbox.MessageInfo) {
	if i, ok := v.at(m.UID); ok {
		v.msgs[i] = m
		delete(v.dirty, m.UID)
	}
}

// tell writes what the client does not know yet; EXPUNGE only if it is allowed.
func (v *view) tell(w *imapserver.UpdateWriter, allowExpunge bool) error {
	if allowExpunge && len(v.gone) > 0 {
		kept := v.msgs[:0]
		for i, m := range v.msgs {
			if !v.gone[m.UID] {
				kept = append(kept, m)
				continue
			}
			delete(v.gone, m.UID)
			if err := w.WriteExpunge(uint32(len(kept) + 1)); err != nil {
				v.msgs = append(kept, v.msgs[i+1:]...)
				return err
			}
		}
		clear(v.msgs[len(kept):])
		v.msgs = kept
	}
	if len(v.fresh) > 0 {
		v.msgs = append(v.msgs, v.fresh...)
		v.fresh = nil
		if err := w.WriteNumMessages(uint32(len(v.msgs))); err != nil {
			return err
		}
	}
	for i, m := range v.msgs {
		if len(v.dirty) == 0 {
			break
		}
		if !v.dirty[m.UID] {
			continue
		}
		delete(v.dirty, m.UID)
		if err := w.WriteMessageFlags(uint32(i+1), imap.UID(m.UID), imapFlags(m.Flags)); err != nil {
			return err
		}
	}
	return nil
}

// A span is a range of indices into msgs, both included.
type span struct{ from, to int }

// spans returns where the messages of a set are: ascending, without overlap.
func (v *view) spans(set imap.NumSet) (list []span, err error) {
	n := len(v.msgs)
	switch set := set.(type) {
	case imap.SeqSet:
		for _, r := range set {
			lo, hi := order(r.Start, r.Stop, uint32(n))
			// RFC 9051 section 9, seq-number: a number beyond the mailbox is the client's mistake.
			if n > 0 && (lo == 0 || hi > uint32(n)) {
				return nil, &imap.Error{Type: imap.StatusResponseTypeBad, Code: imap.ResponseCodeClientBug, Text: "There is no message with that number"}
			}
			list = append(list, span{int(lo) - 1, int(hi) - 1})
		}
	case imap.UIDSet:
		if imap.IsSearchRes(set) {
			set = v.saved
		}
		for _, r := range set {
			if n == 0 {
				break
			}
			lo, hi := order(uint32(r.Start), uint32(r.Stop), uint32(v.msgs[n-1].UID))
			i, _ := v.at(mailbox.UID(lo))
			j, ok := v.at(mailbox.UID(hi))
			if !ok {
				j--
			}
			if i <= j {
				list = append(list, span{i, j})
			}
		}
	}
	if n == 0 {
		return nil, nil
	}
	slices.SortFunc(list, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	merged := list[:0]
	for _, s := range list {
		if k := len(merged) - 1; k >= 0 && s.from <= merged[k].to+1 {
			merged[k].to = max(merged[k].to, s.to)
		} else {
			merged = append(merged, s)
		}
	}
	return merged, nil
}

// within reports whether an index is in spans.
func within(list []span, i int) bool {
	k, ok := slices.BinarySearchFunc(list, i, func(s span, i int) int { return cmp.Compare(s.from, i) })
	return ok || k > 0 && i <= list[k-1].to
}

// resolve returns the indices into msgs of the messages in a set, ascending. gone is how many of
// them are not there any more; they are not in the result.
func (v *view) resolve(set imap.NumSet) (at []int, gone int, err error) {
	list, err := v.spans(set)
	for _, s := range list {
		for i := s.from; i <= s.to; i++ {
			if v.gone[v.msgs[i].UID] {
				gone++
			} else {
				at = append(at, i)
			}
		}
	}
	return at, gone, err
}

// order resolves "*", which is 0, and puts a range in order.
func order(a, b, star uint32) (lo, hi uint32) {
	if a == 0 {
		a = star
	}
	if b == 0 {
		b = star
	}
	return min(a, b), max(a, b)
}

func (v *view) uids(at []int) []mailbox.UID {
	uids := make([]mailbox.UID, len(at))
	for i, j := range at {
		uids[i] = v.msgs[j].UID
	}
	return uids
}

func imapFlags(flags []mailbox.Flag) []imap.Flag {
	out := make([]imap.Flag, len(flags))
	for i, f := range flags {
		out[i] = imap.Flag(f)
	}
	return out
}
