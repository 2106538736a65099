package ledger

import (
	"container/list"
	"context"
	"log/slog"
	"sync"

	"github.com/mailspine/mailspine/mda/mailbox"
)

// A Store is a mailbox.Store over drivers. Accounts are opened when they are used, and
// closed when MaxIdle others have been used since.
type Store struct {
	// Open makes the driver of an account. It is called for a user only when no
	// driver of the user is open.
	Open    func(user string) (Driver, error)
	Limits  Limits // with defaults filled in
	MaxIdle int    // accounts kept open without being used; negative: all
	Logger  *slog.Logger

	mu     sync.Mutex
	slots  map[string]*slot
	idle   list.List // of *slot, last used first
	ops    int       // operations under way
	quiet  *sync.Cond
	closed bool
}

// A slot is an account that is open, or being opened or closed.
type slot struct {
	user string
	refs int           // operations, watchers and maildrop locks; guarded by Store.mu
	elem *list.Element // in idle, when refs is 0
	gone chan struct{} // not nil: being closed; closed when that is done
	once sync.Once
	acct *Account
	err  error
}

var _ mailbox.Store = (*Store)(nil)

// use returns the open account of a user. done must be called once. A pin is not
// waited for by Close.
func (s *Store) use(ctx context.Context, user string, pin bool) (a *Account, done func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	var sl *slot
	for { // until the user's slot is not one that is going away
		if s.closed {
			s.mu.Unlock()
			return nil, nil, mailbox.ErrClosed
		}
		sl = s.slots[user]
		if sl == nil {
			sl = &slot{user: user}
			if s.slots == nil {
				s.slots = map[string]*slot{}
			}
			s.slots[user] = sl
		}
		if sl.gone == nil {
			break
		}
		s.mu.Unlock()
		select {
		case <-sl.gone:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		s.mu.Lock()
	}
	sl.refs++
	if sl.elem != nil {
		s.idle.Remove(sl.elem)
		sl.elem = nil
	}
	s.ops++ // for a pin too, while the account is being opened
	s.mu.Unlock()
	sl.once.Do(func() {
		var d Driver
		if d, sl.err = s.Open(user); sl.err != nil {
			return
		}
		log := s.Logger
		if log == nil {
			log = slog.Default()
		}
		a := newAccount(d, s.Limits, log.With("user", user))
		s.mu.Lock() // for Close
		sl.acct = a
		s.mu.Unlock()
		sl.err = sl.acct.view(context.WithoutCancel(ctx), func(*State) error { return nil })
	})
	if sl.err != nil {
		err := sl.err
		s.unuse(sl, false)
		return nil, nil, err
	}
	if pin {
		s.mu.Lock()
		s.opDone()
		s.mu.Unlock()
	}
	return sl.acct, sync.OnceFunc(func() { s.unuse(sl, pin) }), nil
}

// opDone counts an operation down. s.mu is held.
func (s *Store) opDone() {
	if s.ops--; s.ops == 0 && s.quiet != nil {
		s.quiet.Broadcast()
	}
}

func (s *Store) unuse(sl *slot, pin bool) {
	s.mu.Lock()
	if sl.refs--; sl.refs == 0 && !s.closed {
		if sl.err != nil {
			s.drop(sl) // the next one tries again
		} else {
			sl.elem = s.idle.PushFront(sl)
			for s.MaxIdle >= 0 && s.idle.Len() > s.MaxIdle {
				s.drop(s.idle.Back().Value.(*slot))
			}
		}
	}
	// Counted down last: Close must not pass while a driver is being closed.
	if !pin {
		s.opDone()
	}
	s.mu.Unlock()
}

// drop closes a slot that nobody uses. s.mu is held, and let go meanwhile.
func (s *Store) drop(sl *slot) {
	if sl.elem != nil {
		s.idle.Remove(sl.elem)
		sl.elem = nil
	}
	sl.gone = make(chan struct{})
	s.ops++ // a pin may have brought us here
	s.mu.Unlock()
	s.closeAccount(sl)
	s.mu.Lock()
	delete(s.slots, sl.user)
	close(sl.gone)
	s.opDone()
}

func (s *Store) closeAccount(sl *slot) error {
	if sl.acct == nil {
		return nil
	}
	err := sl.acct.close()
	if err != nil {
		sl.acct.log.Error("mailbox: closing an account", "err", err)
	}
	return err
}

// Account implements mailbox.Store.
func (s *Store) Account(ctx context.Context, user string) (mailbox.Account, error) {
	if err := mailbox.CheckUser(user); err != nil {
		return nil, err
	}
	_, done, err := s.use(ctx, user, false)
	if err != nil {
		return nil, err
	}
	done()
	return &account{s, user}, nil
}

// Close implements mailbox.Store. It returns the first error of closing an
// account. The second Close does nothing.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, sl := range s.slots { // those that wait for events are told now
		if sl.acct != nil {
			sl.acct.hub.close()
		}
	}
	s.quiet = sync.NewCond(&s.mu)
	for s.ops > 0 {
		s.quiet.Wait()
	}
	slots := s.slots
	s.slots = nil
	s.mu.Unlock()
	var first error
	for _, sl := range slots {
		if err := s.closeAccount(sl); first == nil {
			first = err
		}
	}
	return first
}
