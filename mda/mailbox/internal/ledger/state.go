package ledger

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/mailspine/mailspine/mda/mailbox"
)

// A State is what is known of an account without looking at bodies. It is not safe for
// concurrent use.
type State struct {
	nextBox  uint64
	validity uint32 // the last UIDValidity given
	boxes    map[uint64]*Box
	names    map[string]*Box
	uses     map[mailbox.SpecialUse]*Box
	subs     map[string]struct{}
	limit    mailbox.QuotaLimit
	limited  bool // limit was set
	bytes    int64
	messages int64

	deliveries map[Hash]*delivery
	order      []*delivery // oldest first

	maxTombs int
}

// A delivery is remembered so that its repetition is recognised.
type delivery struct {
	hash Hash
	uids map[uint64]mailbox.UID // by mailbox
}

// A Box is a mailbox.
type Box struct {
	ID       uint64
	Name     string
	Use      mailbox.SpecialUse
	Validity uint32

	next   mailbox.UID
	modseq mailbox.ModSeq
	// All changes after floor are known; older tombstones are forgotten.
	floor  mailbox.ModSeq
	msgs   []*Msg // by UID
	tombs  []tomb // by ModSeq
	buried int    // UIDs in tombs

	unseen, deleted int
	size            int64
}

// A tomb is a set of UIDs that were expunged in one step.
type tomb struct {
	modseq mailbox.ModSeq
	uids   []mailbox.UID
}

// A Msg is a message of a Box.
type Msg struct {
	UID     mailbox.UID
	ModSeq  mailbox.ModSeq
	Flags   []mailbox.Flag // not modified: replaced
	Date    int64          // seconds of Unix time
	Size    int64
	Key     string // what the driver called the body when it came
	EmailID string
	File    string // the driver's: where the body is now
}

// NewState returns the state of an account with nothing in it, not even an
// INBOX. maxTombs bounds the tombstones of each mailbox.
func NewState(maxTombs int) *State {
	return &State{
		nextBox: 1, maxTombs: maxTombs,
		boxes: map[uint64]*Box{}, names: map[string]*Box{}, uses: map[mailbox.SpecialUse]*Box{},
		subs: map[string]struct{}{}, deliveries: map[Hash]*delivery{},
	}
}

// An Effect is what a driver may have to do after an Op was applied.
type Effect struct {
	Kind Kind // Make, Drop, Rename, Add, Flags, Expunge, Subscribe (only Old is set: the name), Limit (nothing is set)
	Box  *Box
	Msg  *Msg   // Add, Flags, Expunge
	Old  string // Rename: the name before
	// Name is what Box was called after this Op: later ones of the same batch may have renamed it.
	Name string
}

// Apply applies an entry. On error it may have been applied in part, and the
// State is of no use any more.
func (s *State) Apply(e Entry) ([]Effect, error) {
	var effects []Effect
	for i := range e {
		var err error
		n := len(effects)
		if effects, err = s.apply(&e[i], effects); err != nil {
			return nil, fmt.Errorf("op %d: %w", i, err)
		}
		for j := range effects[n:] {
			if b := effects[n+j].Box; b != nil {
				effects[n+j].Name = b.Name
			}
		}
	}
	return effects, nil
}

func (s *State) apply(o *Op, eff []Effect) ([]Effect, error) {
	switch o.Kind {
	case KindCounters:
		s.nextBox = max(s.nextBox, o.Box)
		s.validity = max(s.validity, o.Validity)
		return eff, nil
	case KindMake:
		name, err := mailbox.CleanName(o.Name)
		use, err2 := mailbox.CleanSpecialUse(o.Use)
		if err != nil || err2 != nil || name != o.Name || use != o.Use || o.Validity == 0 || o.Box == 0 || o.Box == 1<<63-1 ||
			s.boxes[o.Box] != nil || s.names[name] != nil || use != mailbox.UseNone && s.uses[use] != nil {
			return nil, corrupt("mailbox %d %q cannot be made", o.Box, o.Name)
		}
		b := &Box{ID: o.Box, Name: name, Use: use, Validity: o.Validity, next: 1, modseq: 1}
		s.boxes[b.ID], s.names[name] = b, b
		if use != mailbox.UseNone {
			s.uses[use] = b
		}
		s.nextBox = max(s.nextBox, o.Box+1)
		s.validity = max(s.validity, o.Validity)
		return append(eff, Effect{Kind: KindMake, Box: b}), nil
	case KindSubscribe:
		if name, err := mailbox.CleanName(o.Name); err != nil || name != o.Name {
			return nil, corrupt("subscription to %q", o.Name)
		}
		if o.On {
			s.subs[o.Name] = struct{}{}
		} else {
			delete(s.subs, o.Name)
		}
		return append(eff, Effect{Kind: KindSubscribe, Box: s.names[o.Name], Old: o.Name}), nil
	case KindLimit:
		s.limit, s.limited = mailbox.QuotaLimit{Bytes: o.Size, Messages: o.Date}, true
		return append(eff, Effect{Kind: KindLimit}), nil
	case KindDelivery: // its mailbox may be gone
		s.remember(o.Delivery, o.Box, o.UIDs[0])
		return eff, nil
	}
	b := s.boxes[o.Box]
	if b == nil {
		return nil, corrupt("no mailbox %d", o.Box)
	}
	switch o.Kind {
	case KindDrop:
		s.bytes -= b.size
		s.messages -= int64(len(b.msgs))
		delete(s.boxes, b.ID)
		delete(s.names, b.Name)
		if b.Use != mailbox.UseNone {
			delete(s.uses, b.Use)
		}
		return append(eff, Effect{Kind: KindDrop, Box: b}), nil
	case KindRename:
		if name, err := mailbox.CleanName(o.Name); err != nil || name != o.Name || s.names[name] != nil {
			return nil, corrupt("mailbox %d cannot be renamed to %q", o.Box, o.Name)
		}
		old := b.Name
		delete(s.names, old)
		b.Name = o.Name
		s.names[b.Name] = b
		return append(eff, Effect{Kind: KindRename, Box: b, Old: old}), nil
	case KindAdd:
		m := &Msg{UID: o.UIDs[0], ModSeq: o.ModSeq, Flags: o.Flags[0], Date: o.Date, Size: o.Size, Key: o.Key, EmailID: o.EmailID, File: o.File}
		if m.UID < b.next || m.UID == 1<<32-1 || m.ModSeq < 1 || m.Key == "" {
			return nil, corrupt("message %d of mailbox %d, where the next one is %d", m.UID, b.ID, b.next)
		}
		b.msgs = append(b.msgs, m)
		b.next = m.UID + 1
		b.modseq = max(b.modseq, m.ModSeq)
		b.size += m.Size
		b.count(m.Flags, 1)
		s.bytes += m.Size
		s.messages++
		if o.Delivery != (Hash{}) {
			s.remember(o.Delivery, b.ID, m.UID)
		}
		return append(eff, Effect{Kind: KindAdd, Box: b, Msg: m}), nil
	case KindFlags:
		if o.ModSeq <= b.modseq || len(o.Flags) != len(o.UIDs) {
			return nil, corrupt("flags of mailbox %d with an old ModSeq", b.ID)
		}
		b.modseq = o.ModSeq
		for i, u := range o.UIDs {
			m := b.find(u)
			if m == nil {
				return nil, corrupt("flags of message %d, which mailbox %d does not have", u, b.ID)
			}
			b.count(m.Flags, -1)
			m.Flags, m.ModSeq = o.Flags[i], o.ModSeq
			b.count(m.Flags, 1)
			eff = append(eff, Effect{Kind: KindFlags, Box: b, Msg: m})
		}
		return eff, nil
	case KindExpunge:
		if o.ModSeq <= b.modseq {
			return nil, corrupt("expunge in mailbox %d with an old ModSeq", b.ID)
		}
		b.modseq = o.ModSeq
		i := 0
		kept := b.msgs[:0:len(b.msgs)]
		for _, m := range b.msgs { // both lists ascend
			if i < len(o.UIDs) && m.UID == o.UIDs[i] {
				i++
				b.size -= m.Size
				b.count(m.Flags, -1)
				s.bytes -= m.Size
				s.messages--
				eff = append(eff, Effect{Kind: KindExpunge, Box: b, Msg: m})
				continue
			}
			kept = append(kept, m)
		}
		if i != len(o.UIDs) {
			return nil, corrupt("expunge of message %d, which mailbox %d does not have", o.UIDs[i], b.ID)
		}
		clear(b.msgs[len(kept):])
		b.msgs = kept
		b.bury(o.ModSeq, o.UIDs, s.maxTombs)
		return eff, nil
	case KindTombs:
		if n := len(b.tombs); n > 0 && b.tombs[n-1].modseq > o.ModSeq {
			return nil, corrupt("tombstones of mailbox %d out of order", b.ID)
		}
		b.bury(o.ModSeq, o.UIDs, s.maxTombs)
		return eff, nil
	case KindCounts:
		b.next = max(b.next, o.UIDs[0])
		b.modseq = max(b.modseq, o.ModSeq)
		b.floor = max(b.floor, o.Floor)
		return eff, nil
	}
	return nil, corrupt("unknown kind %d", o.Kind)
}

// bury remembers what was expunged, and forgets the oldest so that at most maxTombs
// UIDs are remembered.
func (b *Box) bury(at mailbox.ModSeq, uids []mailbox.UID, maxTombs int) {
	b.tombs = append(b.tombs, tomb{at, uids})
	b.buried += len(uids)
	n := 0
	for b.buried > maxTombs && n < len(b.tombs) {
		b.buried -= len(b.tombs[n].uids)
		b.floor = max(b.floor, b.tombs[n].modseq)
		n++
	}
	b.tombs = slices.Delete(b.tombs, 0, n)
}

func (b *Box) count(flags []mailbox.Flag, by int) {
	if !mailbox.HasFlag(flags, mailbox.Seen) {
		b.unseen += by
	}
	if mailbox.HasFlag(flags, mailbox.Deleted) {
		b.deleted += by
	}
}

func (b *Box) find(u mailbox.UID) *Msg {
	i, ok := slices.BinarySearchFunc(b.msgs, u, func(m *Msg, u mailbox.UID) int { return cmp.Compare(m.UID, u) })
	if !ok {
		return nil
	}
	return b.msgs[i]
}

// pick returns the messages of the given UIDs that exist, each once, by UID.
func (b *Box) pick(uids []mailbox.UID) []*Msg {
	sorted := slices.Clone(uids)
	slices.Sort(sorted)
	var out []*Msg
	for _, u := range slices.Compact(sorted) {
		if m := b.find(u); m != nil {
			out = append(out, m)
		}
	}
	return out
}

// Messages returns the messages by UID. The slice must not be modified.
func (b *Box) Messages() []*Msg { return b.msgs }

// Boxes returns the mailboxes by name.
func (s *State) Boxes() []*Box {
	return slices.SortedFunc(maps.Values(s.boxes), func(a, b *Box) int { return cmp.Compare(a.Name, b.Name) })
}

// Box returns the mailbox of a name, or nil.
func (s *State) Box(name string) *Box { return s.names[name] }

// NextBox returns an ID for a mailbox to be made.
func (s *State) NextBox() uint64 { return s.nextBox }

// NextValidity returns a UIDValidity that was never given in this account: it
// grows with the clock, so that not even an account that lost its log gives one
// twice, as long as it makes less than one mailbox each second.
func (s *State) NextValidity(now time.Time) uint32 {
	return max(uint32(now.Unix()), s.validity+1)
}

// NextUID returns the UID for the next message.
func (b *Box) NextUID() mailbox.UID { return b.next }

// NextModSeq returns the ModSeq for the next change.
func (b *Box) NextModSeq() mailbox.ModSeq { return b.modseq + 1 }

func (s *State) remember(h Hash, box uint64, uid mailbox.UID) {
	d := s.deliveries[h]
	if d == nil {
		d = &delivery{hash: h, uids: map[uint64]mailbox.UID{}}
		s.deliveries[h] = d
		s.order = append(s.order, d)
		if len(s.order) > mailbox.MaxDeliveries {
			delete(s.deliveries, s.order[0].hash)
			s.order = slices.Delete(s.order, 0, 1)
		}
	}
	d.uids[box] = uid
}

// Delivered reports whether a mailbox got a message with a delivery that is remembered.
func (s *State) Delivered(h Hash, box uint64) bool {
	_, ok := s.remembered(h, box)
	return ok
}

func (s *State) remembered(h Hash, box uint64) (mailbox.UID, bool) {
	if d := s.deliveries[h]; d != nil && h != (Hash{}) {
		u, ok := d.uids[box]
		return u, ok
	}
	return 0, false
}

// Snapshot returns entries that make the same state out of nothing. They are cut so that
// none is much larger than a message's or a tombstone's share of it.
func (s *State) Snapshot(yield func(Entry) bool) {
	if !yield(Entry{{Kind: KindCounters, Box: s.nextBox, Validity: s.validity}}) {
		return
	}
	if s.limited && !yield(Entry{{Kind: KindLimit, Size: s.limit.Bytes, Date: s.limit.Messages}}) {
		return
	}
	for _, b := range s.Boxes() {
		if !yield(Entry{{Kind: KindMake, Box: b.ID, Name: b.Name, Use: b.Use, Validity: b.Validity}}) {
			return
		}
		for chunk := range slices.Chunk(b.msgs, 1000) {
			e := make(Entry, len(chunk))
			for i, m := range chunk {
				e[i] = Op{Kind: KindAdd, Box: b.ID, UIDs: []mailbox.UID{m.UID}, ModSeq: m.ModSeq, Flags: [][]mailbox.Flag{m.Flags},
					Date: m.Date, Size: m.Size, Key: m.Key, EmailID: m.EmailID}
			}
			if !yield(e) {
				return
			}
		}
		for _, t := range b.tombs {
			if !yield(Entry{{Kind: KindTombs, Box: b.ID, ModSeq: t.modseq, UIDs: t.uids}}) {
				return
			}
		}
		if !yield(Entry{{Kind: KindCounts, Box: b.ID, UIDs: []mailbox.UID{b.next}, ModSeq: b.modseq, Floor: b.floor}}) {
			return
		}
	}
	for name := range s.subs {
		if !yield(Entry{{Kind: KindSubscribe, Name: name, On: true}}) {
			return
		}
	}
	for _, d := range s.order {
		for box, uid := range d.uids {
			if !yield(Entry{{Kind: KindDelivery, Box: box, UIDs: []mailbox.UID{uid}, Delivery: d.hash}}) {
				return
			}
		}
	}
}

// info returns what package mailbox tells of a mailbox.
func (s *State) info(b *Box) mailbox.Info {
	_, sub := s.subs[b.Name]
	return mailbox.Info{
		Name: b.Name, ID: b.id(), SpecialUse: b.Use, Subscribed: sub,
		UIDValidity: b.Validity, UIDNext: b.next, ModSeq: b.modseq,
		Messages: len(b.msgs), Unseen: b.unseen, Deleted: b.deleted, Size: b.size,
	}
}

// id is the MAILBOXID. The number alone might be given again by an account
// that lost its log; the UIDValidity is not.
func (b *Box) id() string {
	return "m" + strconv.FormatUint(b.ID, 36) + "-" + strconv.FormatUint(uint64(b.Validity), 36)
}

func (m *Msg) info() mailbox.MessageInfo {
	return mailbox.MessageInfo{
		UID: m.UID, ModSeq: m.ModSeq, Flags: slices.Clone(m.Flags),
		InternalDate: time.Unix(m.Date, 0).UTC(), Size: m.Size, EmailID: m.EmailID,
	}
}
