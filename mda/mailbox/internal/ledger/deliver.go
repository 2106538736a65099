package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// maxID is the longest DeliverOptions.ID, in octets.
const maxID = 1024

// hashOf returns what is kept of a DeliverOptions.ID.
func hashOf(id string) (h Hash) {
	if id != "" {
		sum := sha256.Sum256([]byte(id))
		copy(h[:], sum[:])
	}
	return h
}

// newKey returns a name for a body: unique, sorted by time, with the size and
// where it comes from, so that a driver that finds a body without an entry of the log knows
// what it is: of a delivery, which is recognised when it is repeated, or a
// copy of another body (see [Origin]).
func newKey(now time.Time, size int64, origin string) string {
	key := strconv.FormatInt(now.Unix(), 10) + "." + string(mailspine.NewMsgID())
	if origin != "" {
		key += "." + origin
	}
	return key + ",S=" + strconv.FormatInt(size, 10)
}

func (h Hash) origin() string {
	if h == (Hash{}) {
		return ""
	}
	return fmt.Sprintf("%x", h[:])
}

// CopyMark returns what the key of a copy has in it of the key of its original.
func CopyMark(original string) string {
	sum := sha256.Sum256([]byte(original))
	return fmt.Sprintf("x%x", sum[:8]) // x is no hexadecimal digit
}

// Origin takes a key apart: the delivery that the body came with, or the CopyMark of
// what it is a copy of. Both are zero for what has neither, and for keys of others.
func Origin(key string) (delivery Hash, copyMark string) {
	base, _, _ := strings.Cut(key, ",")
	parts := strings.Split(base, ".")
	if len(parts) != 3 {
		return
	}
	mark, isCopy := strings.CutPrefix(parts[2], "x")
	raw, err := hex.DecodeString(mark)
	switch {
	case err != nil:
	case isCopy && len(raw) == 8:
		copyMark = parts[2]
	case !isCopy && len(raw) == len(delivery):
		copy(delivery[:], raw)
	}
	return
}

// A target is a mailbox that a message is delivered into.
type target struct {
	name string // "": known by id
	id   uint64
}

// Deliver implements mailbox.Account.
func (h *account) Deliver(ctx context.Context, msg mailspine.Content, opts mailbox.DeliverOptions) (mailbox.Delivered, error) {
	names := opts.Mailboxes
	if len(names) == 0 {
		names = []string{mailbox.Inbox}
	}
	if len(names) > mailbox.MaxTargets {
		return mailbox.Delivered{}, limitError("target mailboxes", mailbox.MaxTargets)
	}
	if len(opts.ID) > maxID {
		return mailbox.Delivered{}, limitError("octets of a delivery's ID", maxID)
	}
	var targets []target
	index := make([]int, len(names)) // of names in targets
	for i, n := range names {
		name, err := mailbox.CleanName(n)
		if err != nil {
			return mailbox.Delivered{}, err
		}
		at := slices.IndexFunc(targets, func(t target) bool { return t.name == name })
		if at < 0 {
			at = len(targets)
			targets = append(targets, target{name: name})
		}
		index[i] = at
	}
	a, done, err := h.store.use(ctx, h.user, false)
	if err != nil {
		return mailbox.Delivered{}, err
	}
	defer done()
	copies, err := a.deliver(ctx, msg, targets, opts)
	if err != nil {
		return mailbox.Delivered{}, err
	}
	out := mailbox.Delivered{Copies: make([]mailbox.Copy, len(index))}
	for i, at := range index {
		out.Copies[i] = copies[at]
	}
	return out, nil
}

// deliver is Deliver and Append. targets are different mailboxes.
func (a *Account) deliver(ctx context.Context, msg mailspine.Content, targets []target, opts mailbox.DeliverOptions) ([]mailbox.Copy, error) {
	flags, err := mailbox.CleanFlags(opts.Flags)
	if err != nil {
		return nil, err
	}
	hash := hashOf(opts.ID)
	copies := make([]mailbox.Copy, len(targets))
	if again, err := a.prepare(ctx, targets, opts.Create, hash, copies); err != nil || again {
		return copies, err
	}
	held, err := a.reserve(ctx, msg.Size(), len(targets))
	if err != nil {
		return nil, err
	}
	defer a.release(&held)
	staged, err := a.drv.Stage(ctx, msg)
	if err != nil {
		return nil, err
	}
	defer staged.Discard()

	a.layout.RLock()
	defer a.layout.RUnlock()
	now := time.Now()
	emailID := string(mailspine.NewMsgID())
	size := staged.Size()
	var to []Place
	var boxes []uint64
	var at []int // of to in targets
	err = a.view(ctx, func(s *State) error {
		for i, t := range targets {
			b, err := t.find(s)
			if err != nil {
				return err
			}
			copies[i].Mailbox, copies[i].UIDValidity = b.Name, b.Validity
			if uid, ok := s.remembered(hash, b.ID); ok {
				copies[i].Repeated, copies[i].UID = true, uid
				continue
			}
			to = append(to, Place{Box: b.Name, Key: newKey(now, size, hash.origin()), Flags: flags})
			boxes = append(boxes, b.ID)
			at = append(at, i)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := a.drv.Place(staged, to); err != nil {
		a.unplace(to)
		return nil, err
	}
	repeated := false
	// From here on it is finished: what would be left behind otherwise would have to be found.
	err = a.update(context.WithoutCancel(ctx), func(s *State) (Entry, error) {
		var e Entry
		for i, id := range boxes {
			// layout is held, so only an account that lost its log meanwhile has another one.
			b := s.boxes[id]
			c := &copies[at[i]]
			if b == nil || b.Validity != c.UIDValidity {
				return nil, mailbox.ErrNoMailbox
			}
			if uid, ok := s.remembered(hash, id); ok { // by a delivery at the same time
				c.Repeated, c.UID, c.ModSeq, repeated = true, uid, 0, true
				continue
			}
			if err := a.room(b, 1); err != nil {
				return nil, err
			}
			c.UID, c.ModSeq = b.next, b.modseq+1
			e = append(e, Op{Kind: KindAdd, Box: id, UIDs: []mailbox.UID{c.UID}, ModSeq: c.ModSeq, Flags: [][]mailbox.Flag{flags},
				Date: ClampDate(opts.InternalDate), Size: size, Key: to[i].Key, EmailID: emailID, Delivery: hash, File: to[i].File})
		}
		a.spend(&held)
		return e, nil
	})
	if err != nil || repeated {
		a.unplace(to)
	}
	if err != nil {
		return nil, err
	}
	return copies, nil
}

// find returns the mailbox of a target.
func (t target) find(s *State) (*Box, error) {
	b := s.boxes[t.id]
	if t.name != "" {
		b = s.names[t.name]
	}
	if b == nil {
		return nil, mailbox.ErrNoMailbox
	}
	return b, nil
}

// prepare sees that the targets exist and have room. again is true if all of
// them have the message already.
func (a *Account) prepare(ctx context.Context, targets []target, create bool, h Hash, copies []mailbox.Copy) (again bool, err error) {
	var missing []string
	look := func(s *State) error {
		missing, again = nil, true
		for i, t := range targets {
			b, err := t.find(s)
			if err != nil {
				if !create || t.name == "" {
					return err
				}
				missing, again = append(missing, t.name), false
				continue
			}
			if uid, ok := s.remembered(h, b.ID); ok {
				copies[i] = mailbox.Copy{Mailbox: b.Name, UIDValidity: b.Validity, UID: uid, Repeated: true}
				continue
			}
			again = false
			if err := a.room(b, 1); err != nil {
				return err
			}
		}
		return nil
	}
	if err := a.view(ctx, look); err != nil || len(missing) == 0 {
		return again, err
	}
	a.layout.Lock()
	defer a.layout.Unlock()
	return false, a.make(ctx, func(s *State) (e Entry, err error) {
		for _, name := range missing {
			if e, err = a.makesAfter(s, e, name, mailbox.UseNone); err != nil {
				return nil, err
			}
		}
		return e, nil
	})
}

// room says whether a mailbox can take n messages more.
func (a *Account) room(b *Box, n int) error {
	if len(b.msgs)+n > a.limits.MaxMessages {
		return limitError("messages of a mailbox", a.limits.MaxMessages)
	}
	if uint64(b.next)+uint64(n) >= 1<<32-1 {
		return limitError("UIDs of a mailbox", 1<<32-1)
	}
	return nil
}

// unplace takes back the names of bodies that did not become messages.
func (a *Account) unplace(to []Place) {
	to = slices.DeleteFunc(to, func(p Place) bool { return p.File == "" })
	// If it cannot be loaded, the bodies are found when the account is opened the next time.
	a.view(context.Background(), func(s *State) error {
		keys := map[string]map[string]struct{}{} // by mailbox, of those that have a Place
		for _, p := range to {
			if b := s.names[p.Box]; b != nil && keys[p.Box] == nil {
				keys[p.Box] = make(map[string]struct{}, len(b.msgs))
				for _, m := range b.msgs {
					keys[p.Box][m.Key] = struct{}{}
				}
			}
		}
		a.drv.Unplace(slices.DeleteFunc(to, func(p Place) bool {
			_, is := keys[p.Box][p.Key]
			return is
		}))
		return nil
	})
}

// A transfer is a copy or a move.
type transfer struct {
	from uint64
	uids []mailbox.UID // nil with all
	all  bool
	dest string
	make bool // dest is made
	move bool
}

// transfer copies or moves messages. layout is held, for writing if t.make.
func (a *Account) transfer(ctx context.Context, t transfer) (out mailbox.Copied, err error) {
	var msgs []*Msg
	var src *Box // used only while the state stands still, or found anew
	var bytes int64
	err = a.view(ctx, func(s *State) error {
		if src = s.boxes[t.from]; src == nil {
			return mailbox.ErrNoMailbox
		}
		if msgs = slices.Clone(src.msgs); !t.all {
			msgs = src.pick(t.uids)
		}
		if len(msgs) > mailbox.MaxUIDs {
			return limitError("messages copied at once", mailbox.MaxUIDs)
		}
		d := s.names[t.dest]
		switch {
		case d == nil && !t.make:
			return mailbox.ErrNoMailbox
		case d != nil && t.make:
			return mailbox.ErrExists
		case d != nil:
			out.UIDValidity = d.Validity
			if err := a.room(d, len(msgs)); err != nil {
				return err
			}
		}
		for _, m := range msgs {
			bytes += m.Size
		}
		return nil
	})
	if err != nil || len(msgs) == 0 && !t.make {
		return out, err
	}
	var held reservation
	if !t.move {
		if held, err = a.reserveSum(ctx, bytes, len(msgs)); err != nil {
			return out, err
		}
		defer a.release(&held)
	}
	to := make([]Place, len(msgs))
	var made Entry
	if t.make {
		err = a.view(ctx, func(s *State) (err error) {
			made, err = a.makes(s, t.dest, mailbox.UseNone)
			return err
		})
		for _, o := range made {
			if err == nil {
				err = a.drv.MakeBox(o.Name)
			}
		}
	}
	if err == nil {
		err = a.link(ctx, t, msgs, to)
	}
	if err == nil {
		err = a.update(context.WithoutCancel(ctx), func(s *State) (Entry, error) {
			out.Source, out.Dest = nil, nil
			e := slices.Clone(made)
			src, d := s.boxes[t.from], s.names[t.dest]
			if src == nil || (d == nil) != t.make || d != nil && d.Validity != out.UIDValidity {
				return nil, mailbox.ErrNoMailbox // the account lost its log meanwhile
			}
			next, modseq := mailbox.UID(1), mailbox.ModSeq(2)
			destID := uint64(0)
			if d != nil {
				next, modseq, destID = d.next, d.modseq+1, d.ID
				if err := a.room(d, len(msgs)); err != nil {
					return nil, err
				}
			} else {
				destID, out.UIDValidity = made[len(made)-1].Box, made[len(made)-1].Validity
			}
			for i, old := range msgs {
				m := src.find(old.UID)
				if m == nil || m.Key != old.Key || to[i].File == "" {
					continue // expunged meanwhile, or moved by somebody else
				}
				e = append(e, Op{Kind: KindAdd, Box: destID, UIDs: []mailbox.UID{next}, ModSeq: modseq, Flags: [][]mailbox.Flag{m.Flags},
					Date: m.Date, Size: m.Size, Key: to[i].Key, EmailID: m.EmailID, File: to[i].File})
				out.Source, out.Dest = append(out.Source, m.UID), append(out.Dest, next)
				next++
			}
			if t.move && len(out.Source) > 0 {
				at := src.modseq + 1
				if destID == t.from {
					at = modseq + 1
				}
				e = append(e, Op{Kind: KindExpunge, Box: t.from, UIDs: out.Source, ModSeq: at})
			}
			a.spend(&held)
			return e, nil
		})
	}
	if err != nil || len(out.Source) < len(msgs) {
		a.unplace(to)
	}
	if err != nil {
		a.unmake(made)
		return mailbox.Copied{}, err
	}
	out.Source = slices.Clone(out.Source) // the log's entry has the other one
	return out, nil
}

// link gives bodies names in the destination of a transfer. Those that are gone
// keep a Place without File.
func (a *Account) link(ctx context.Context, t transfer, msgs []*Msg, to []Place) error {
	now := time.Now()
	for i := range msgs {
		// Each by itself, so that nobody has to wait for all of them.
		err := a.view(ctx, func(s *State) error {
			src := s.boxes[t.from]
			if src == nil {
				return mailbox.ErrNoMailbox
			}
			m := src.find(msgs[i].UID)
			if m == nil {
				return nil
			}
			to[i] = Place{Box: t.dest, Key: newKey(now, m.Size, CopyMark(m.Key)), Flags: m.Flags}
			if err := a.drv.Link(src, m, &to[i]); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			to[i].File = ""
			return nil
		})
		if err != nil {
			return err
		}
	}
	return a.drv.Sync(to)
}

// reserveSum is reserve for messages that are in the account already.
func (a *Account) reserveSum(ctx context.Context, bytes int64, n int) (reservation, error) {
	if err := a.view(ctx, func(*State) error { return nil }); err != nil {
		return reservation{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	st, err := a.load()
	if err != nil {
		return reservation{}, err
	}
	return a.hold(st, reservation{bytes, int64(n)})
}

// renameInbox moves all messages of INBOX into a new mailbox. layout is held for writing.
func (a *Account) renameInbox(ctx context.Context, to string) error {
	var id uint64
	err := a.view(ctx, func(s *State) error {
		id = s.names[mailbox.Inbox].ID
		return nil
	})
	if err != nil {
		return err
	}
	_, err = a.transfer(ctx, transfer{from: id, all: true, dest: to, make: true, move: true})
	return err
}
