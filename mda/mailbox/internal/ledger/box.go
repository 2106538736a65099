package ledger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// box is the handle of a mailbox: its number, which is not given twice, and the
// UIDValidity, in case the account lost its log and began anew.
type box struct {
	account  *account
	id       uint64
	validity uint32
}

var _ mailbox.Mailbox = (*box)(nil)

// find returns the mailbox in a state.
func (m *box) find(s *State) (*Box, error) {
	b := s.boxes[m.id]
	if b == nil || b.Validity != m.validity {
		return nil, mailbox.ErrNoMailbox
	}
	return b, nil
}

// look calls fn with the mailbox, while it stands still.
func (m *box) look(ctx context.Context, fn func(*Account, *State, *Box) error) error {
	a, done, err := m.account.store.use(ctx, m.account.user, false)
	if err != nil {
		return err
	}
	defer done()
	return a.view(ctx, func(s *State) error {
		b, err := m.find(s)
		if err != nil {
			return err
		}
		return fn(a, s, b)
	})
}

// Info implements mailbox.Mailbox.
func (m *box) Info(ctx context.Context) (info mailbox.Info, err error) {
	err = m.look(ctx, func(_ *Account, s *State, b *Box) error {
		info = s.info(b)
		return nil
	})
	return info, err
}

// Snapshot implements mailbox.Mailbox.
func (m *box) Snapshot(ctx context.Context) (snap mailbox.Snapshot, err error) {
	err = m.look(ctx, func(_ *Account, s *State, b *Box) error {
		snap = mailbox.Snapshot{Info: s.info(b), Messages: make([]mailbox.MessageInfo, len(b.msgs))}
		for i, x := range b.msgs {
			snap.Messages[i] = x.info()
		}
		return nil
	})
	return snap, err
}

// Append implements mailbox.Mailbox.
func (m *box) Append(ctx context.Context, msg mailspine.Content, opts mailbox.AppendOptions) (mailbox.Copy, error) {
	a, done, err := m.account.store.use(ctx, m.account.user, false)
	if err != nil {
		return mailbox.Copy{}, err
	}
	defer done()
	if err := m.there(ctx, a); err != nil {
		return mailbox.Copy{}, err
	}
	copies, err := a.deliver(ctx, msg, []target{{id: m.id}}, mailbox.DeliverOptions{Flags: opts.Flags, InternalDate: opts.InternalDate})
	if err != nil {
		return mailbox.Copy{}, err
	}
	return copies[0], nil
}

func (m *box) there(ctx context.Context, a *Account) error {
	return a.view(ctx, func(s *State) error {
		_, err := m.find(s)
		return err
	})
}

// Body implements mailbox.Mailbox.
func (m *box) Body(ctx context.Context, uid mailbox.UID) (body mailbox.Body, err error) {
	err = m.look(ctx, func(a *Account, _ *State, b *Box) error {
		x := b.find(uid)
		if x == nil {
			return mailbox.ErrNoMessage
		}
		body, err = a.drv.Body(b, x)
		if errors.Is(err, fs.ErrNotExist) {
			// Somebody else removed it. It is no message any more, but stays listed until
			// the account is opened the next time.
			return fmt.Errorf("%w: %w", mailbox.ErrNoMessage, err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return body, nil
}

// change runs fn in the order of changes.
func (m *box) change(ctx context.Context, fn func(*Account, *Box) (Entry, error)) error {
	a, done, err := m.account.store.use(ctx, m.account.user, false)
	if err != nil {
		return err
	}
	defer done()
	return a.update(ctx, func(s *State) (Entry, error) {
		b, err := m.find(s)
		if err != nil {
			return nil, err
		}
		return fn(a, b)
	})
}

// SetFlags implements mailbox.Mailbox.
func (m *box) SetFlags(ctx context.Context, uids []mailbox.UID, change mailbox.FlagChange) (res mailbox.FlagResult, err error) {
	flags, err := mailbox.CleanFlags(change.Flags)
	if err != nil {
		return res, err
	}
	if change.Op > mailbox.ReplaceFlags {
		return res, fmt.Errorf("%w: unknown operation %d", mailbox.ErrBadFlag, change.Op)
	}
	if len(uids) > mailbox.MaxUIDs {
		return res, limitError("messages changed at once", mailbox.MaxUIDs)
	}
	err = m.change(ctx, func(_ *Account, b *Box) (Entry, error) {
		res = mailbox.FlagResult{ModSeq: b.modseq}
		op := Op{Kind: KindFlags, Box: b.ID, ModSeq: b.modseq + 1}
		for _, x := range b.pick(uids) {
			if change.UnchangedSince != nil && x.ModSeq > *change.UnchangedSince {
				res.Conflicts = append(res.Conflicts, x.UID)
				continue
			}
			now, err := mailbox.ApplyFlags(x.Flags, change.Op, flags)
			if err != nil {
				return nil, err
			}
			if slices.Equal(now, x.Flags) {
				continue
			}
			op.UIDs = append(op.UIDs, x.UID)
			op.Flags = append(op.Flags, now)
			info := x.info()
			info.Flags, info.ModSeq = slices.Clone(now), op.ModSeq
			res.Changed = append(res.Changed, info)
		}
		if len(op.UIDs) == 0 {
			return nil, nil
		}
		res.ModSeq = op.ModSeq
		return Entry{op}, nil
	})
	if err != nil {
		return mailbox.FlagResult{}, err
	}
	return res, nil
}

// Expunge implements mailbox.Mailbox.
func (m *box) Expunge(ctx context.Context, uids []mailbox.UID, opts mailbox.ExpungeOptions) (gone []mailbox.UID, err error) {
	if len(uids) > mailbox.MaxUIDs {
		return nil, limitError("messages removed at once", mailbox.MaxUIDs)
	}
	err = m.change(ctx, func(_ *Account, b *Box) (Entry, error) {
		gone = nil
		msgs := b.msgs
		if !opts.All {
			msgs = b.pick(uids)
		}
		for _, x := range msgs {
			if opts.Any || mailbox.HasFlag(x.Flags, mailbox.Deleted) {
				gone = append(gone, x.UID)
			}
		}
		if len(gone) == 0 {
			return nil, nil
		}
		return Entry{{Kind: KindExpunge, Box: b.ID, UIDs: gone, ModSeq: b.modseq + 1}}, nil
	})
	if err != nil {
		return nil, err
	}
	return slices.Clone(gone), nil // the tombstone has the other one
}

// CopyTo implements mailbox.Mailbox.
func (m *box) CopyTo(ctx context.Context, uids []mailbox.UID, dest string) (mailbox.Copied, error) {
	return m.transfer(ctx, uids, dest, false)
}

// MoveTo implements mailbox.Mailbox.
func (m *box) MoveTo(ctx context.Context, uids []mailbox.UID, dest string) (mailbox.Copied, error) {
	return m.transfer(ctx, uids, dest, true)
}

func (m *box) transfer(ctx context.Context, uids []mailbox.UID, dest string, move bool) (mailbox.Copied, error) {
	dest, err := mailbox.CleanName(dest)
	if err != nil {
		return mailbox.Copied{}, err
	}
	a, done, err := m.account.store.use(ctx, m.account.user, false)
	if err != nil {
		return mailbox.Copied{}, err
	}
	defer done()
	a.layout.RLock()
	defer a.layout.RUnlock()
	if err := m.there(ctx, a); err != nil {
		return mailbox.Copied{}, err
	}
	return a.transfer(ctx, transfer{from: m.id, uids: uids, dest: dest, move: move})
}

// Changes implements mailbox.Mailbox.
func (m *box) Changes(ctx context.Context, since mailbox.ModSeq) (set mailbox.ChangeSet, err error) {
	err = m.look(ctx, func(_ *Account, s *State, b *Box) error {
		if since < b.floor {
			return mailbox.ErrModSeqTooOld
		}
		set.Info = s.info(b)
		for _, x := range b.msgs {
			if x.ModSeq > since {
				set.Changed = append(set.Changed, x.info())
			}
		}
		for i := len(b.tombs) - 1; i >= 0 && b.tombs[i].modseq > since; i-- {
			set.Expunged = append(set.Expunged, b.tombs[i].uids...)
		}
		slices.Sort(set.Expunged)
		return nil
	})
	return set, err
}

// LockMaildrop implements mailbox.Mailbox.
func (m *box) LockMaildrop(ctx context.Context) (func(), error) {
	a, done, err := m.account.store.use(ctx, m.account.user, true)
	if err != nil {
		return nil, err
	}
	if err := m.there(ctx, a); err != nil {
		done()
		return nil, err
	}
	a.qmu.Lock()
	defer a.qmu.Unlock()
	if _, taken := a.drops[m.id]; taken {
		done()
		return nil, mailbox.ErrInUse
	}
	a.drops[m.id] = struct{}{}
	return sync.OnceFunc(func() {
		a.qmu.Lock()
		delete(a.drops, m.id)
		a.qmu.Unlock()
		done()
	}), nil
}
