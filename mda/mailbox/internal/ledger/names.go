package ledger

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine/mda/mailbox"
)

// account is the handle that callers of package mailbox have: a name.
type account struct {
	store *Store
	user  string
}

var _ mailbox.Account = (*account)(nil)

// Mailboxes implements mailbox.Account.
func (h *account) Mailboxes(ctx context.Context) ([]mailbox.Info, error) {
	a, done, err := h.store.use(ctx, h.user, false)
	if err != nil {
		return nil, err
	}
	defer done()
	var out []mailbox.Info
	err = a.view(ctx, func(s *State) error {
		for _, b := range s.boxes {
			out = append(out, s.info(b))
		}
		for name := range s.subs {
			if s.names[name] == nil {
				out = append(out, mailbox.Info{Name: name, Subscribed: true, NonExistent: true})
			}
		}
		return nil
	})
	slices.SortFunc(out, func(x, y mailbox.Info) int {
		if (x.Name == mailbox.Inbox) != (y.Name == mailbox.Inbox) {
			if x.Name == mailbox.Inbox {
				return -1
			}
			return 1
		}
		return cmp.Compare(x.Name, y.Name)
	})
	return out, err
}

// Open implements mailbox.Account.
func (h *account) Open(ctx context.Context, name string) (mailbox.Mailbox, error) {
	name, err := mailbox.CleanName(name)
	if err != nil {
		return nil, err
	}
	a, done, err := h.store.use(ctx, h.user, false)
	if err != nil {
		return nil, err
	}
	defer done()
	m := &box{account: h}
	err = a.view(ctx, func(s *State) error {
		b := s.names[name]
		if b == nil {
			return mailbox.ErrNoMailbox
		}
		m.id, m.validity = b.ID, b.Validity
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// makes returns the ops that make a mailbox and those above it that are missing.
func (a *Account) makes(s *State, name string, use mailbox.SpecialUse) (Entry, error) {
	return a.makesAfter(s, nil, name, use)
}

// makesAfter is makes for an entry that begins with others that make mailboxes.
func (a *Account) makesAfter(s *State, e Entry, name string, use mailbox.SpecialUse) (Entry, error) {
	next, validity := s.nextBox, s.NextValidity(time.Now())
	made := map[string]bool{}
	for _, o := range e {
		if o.Kind == KindMake {
			next, validity = o.Box+1, o.Validity+1
			made[o.Name] = true
		}
	}
	for _, n := range append(mailbox.Above(name), name) {
		if s.names[n] != nil || made[n] {
			continue
		}
		o := Op{Kind: KindMake, Box: next, Name: n, Validity: validity}
		if n == name {
			o.Use = use
		}
		e = append(e, o)
		next++
		validity++
	}
	if len(s.boxes)+len(e) > a.limits.MaxMailboxes {
		return nil, limitError("mailboxes", a.limits.MaxMailboxes)
	}
	return e, nil
}

// make makes what plan says, places first. layout is held for writing.
func (a *Account) make(ctx context.Context, plan func(*State) (Entry, error)) error {
	var e Entry
	err := a.view(ctx, func(s *State) (err error) {
		e, err = plan(s)
		return err
	})
	if err != nil {
		return err
	}
	for i, o := range e {
		if o.Kind != KindMake {
			continue
		}
		if err = a.drv.MakeBox(o.Name); err != nil {
			a.unmake(e[:i+1])
			return err
		}
	}
	// Mailboxes are made and named only under layout, so the plan is the same now.
	if err = a.update(ctx, plan); err != nil {
		a.unmake(e)
	}
	return err
}

// unmake takes back the places of mailboxes that do not exist.
func (a *Account) unmake(e Entry) {
	a.view(context.Background(), func(s *State) error { // when it cannot be loaded, the next load tidies up
		for _, o := range slices.Backward(e) {
			if o.Kind == KindMake && s.names[o.Name] == nil {
				a.drv.UnmakeBox(o.Name)
			}
		}
		return nil
	})
}

// Create implements mailbox.Account.
func (h *account) Create(ctx context.Context, name string, opts mailbox.CreateOptions) error {
	name, err := mailbox.CleanName(name)
	if err != nil {
		return err
	}
	use, err := mailbox.CleanSpecialUse(opts.SpecialUse)
	if err != nil {
		return err
	}
	a, done, err := h.store.use(ctx, h.user, false)
	if err != nil {
		return err
	}
	defer done()
	a.layout.Lock()
	defer a.layout.Unlock()
	return a.make(ctx, func(s *State) (Entry, error) {
		if s.names[name] != nil || use != mailbox.UseNone && s.uses[use] != nil {
			return nil, mailbox.ErrExists
		}
		return a.makes(s, name, use)
	})
}

// Delete implements mailbox.Account.
func (h *account) Delete(ctx context.Context, name string) error {
	name, err := mailbox.CleanName(name)
	if err != nil {
		return err
	}
	if name == mailbox.Inbox {
		return mailbox.ErrInbox
	}
	a, done, err := h.store.use(ctx, h.user, false)
	if err != nil {
		return err
	}
	defer done()
	a.layout.Lock()
	defer a.layout.Unlock()
	return a.update(ctx, func(s *State) (Entry, error) {
		b := s.names[name]
		if b == nil {
			return nil, mailbox.ErrNoMailbox
		}
		return Entry{{Kind: KindDrop, Box: b.ID}}, nil
	})
}

// Rename implements mailbox.Account.
func (h *account) Rename(ctx context.Context, from, to string) error {
	from, err := mailbox.CleanName(from)
	if err != nil {
		return err
	}
	if to, err = mailbox.CleanName(to); err != nil {
		return err
	}
	if strings.HasPrefix(to, from+mailbox.Separator) && from != mailbox.Inbox {
		return fmt.Errorf("%w: %q is below %q", mailbox.ErrBadName, to, from)
	}
	a, done, err := h.store.use(ctx, h.user, false)
	if err != nil {
		return err
	}
	defer done()
	a.layout.Lock()
	defer a.layout.Unlock()
	if from == mailbox.Inbox {
		return a.renameInbox(ctx, to)
	}
	return a.make(ctx, func(s *State) (Entry, error) {
		b := s.names[from]
		switch {
		case b == nil:
			return nil, mailbox.ErrNoMailbox
		case from == to:
			return nil, mailbox.ErrExists
		}
		below := from + mailbox.Separator
		renames := Entry{{Kind: KindRename, Box: b.ID, Name: to}}
		for _, c := range s.Boxes() {
			if rest, ok := strings.CutPrefix(c.Name, below); ok {
				name, err := mailbox.CleanName(to + mailbox.Separator + rest) // it may be too long now
				if err != nil {
					return nil, err
				}
				renames = append(renames, Op{Kind: KindRename, Box: c.ID, Name: name})
			}
		}
		for _, o := range renames {
			if s.names[o.Name] != nil {
				return nil, mailbox.ErrExists
			}
		}
		var e Entry
		if up := mailbox.Above(to); len(up) > 0 {
			var err error
			if e, err = a.makes(s, up[len(up)-1], mailbox.UseNone); err != nil {
				return nil, err
			}
		}
		return append(e, renames...), nil
	})
}

// SetSubscribed implements mailbox.Account.
func (h *account) SetSubscribed(ctx context.Context, name string, subscribed bool) error {
	name, err := mailbox.CleanName(name)
	if err != nil {
		return err
	}
	a, done, err := h.store.use(ctx, h.user, false)
	if err != nil {
		return err
	}
	defer done()
	return a.update(ctx, func(s *State) (Entry, error) {
		if _, is := s.subs[name]; is == subscribed {
			return nil, nil
		}
		if subscribed && len(s.subs) >= a.limits.MaxMailboxes {
			return nil, limitError("subscriptions", a.limits.MaxMailboxes)
		}
		return Entry{{Kind: KindSubscribe, Name: name, On: subscribed}}, nil
	})
}

// Quota implements mailbox.Account.
func (h *account) Quota(ctx context.Context) (q mailbox.Quota, err error) {
	a, done, err := h.store.use(ctx, h.user, false)
	if err != nil {
		return q, err
	}
	defer done()
	err = a.view(ctx, func(s *State) error {
		q = mailbox.Quota{Limit: a.limit(s), Bytes: s.bytes, Messages: s.messages}
		return nil
	})
	return q, err
}

// SetQuota implements mailbox.Account.
func (h *account) SetQuota(ctx context.Context, limit mailbox.QuotaLimit) error {
	a, done, err := h.store.use(ctx, h.user, false)
	if err != nil {
		return err
	}
	defer done()
	return a.update(ctx, func(s *State) (Entry, error) {
		return Entry{{Kind: KindLimit, Size: max(limit.Bytes, 0), Date: max(limit.Messages, 0)}}, nil
	})
}

// Watch implements mailbox.Account.
func (h *account) Watch(ctx context.Context) (mailbox.Watcher, error) {
	a, done, err := h.store.use(ctx, h.user, true)
	if err != nil {
		return nil, err
	}
	w, err := a.hub.watch(done)
	if err != nil {
		done()
		return nil, err
	}
	return w, nil
}
