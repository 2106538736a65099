package maildir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/internal/ledger"
)

// Options of a Store. The zero value, and a nil *Options, mean the defaults.
type Options struct {
	MaxMessage   int64              // octets of one message; 0: 100 MiB. Beyond it: mailbox.ErrTooBig.
	MaxMailboxes int                // of an account; 0: 5,000
	MaxMessages  int                // of a mailbox; 0: 1,048,576
	MaxTombs     int                // UIDs of expunged messages that each mailbox remembers; 0: 50,000
	Quota        mailbox.QuotaLimit // of accounts for which none was set; zero: none

	// MaxIdle is how many accounts stay open that nobody uses; 0: 100,
	// negative: none. An open account costs a file descriptor and some 250
	// octets of memory for each of its messages.
	MaxIdle int

	Logger *slog.Logger // nil: slog.Default()
}

const defaultMaxIdle = 100

// A Store is a mailbox.Store of Maildirs. Make it with [Open]. Errors of the file
// system are returned as they are: mailspine.Status answers a full disk with 452 4.3.1.
type Store struct {
	ledger *ledger.Store
	lock   io.Closer
	close  func() error // once
}

var _ mailbox.Store = (*Store)(nil)

// Open opens the store in a folder, which is made if need be. It is an error
// if another process has it open. opts may be nil.
func Open(dir string, opts *Options) (*Store, error) { return open(durable.OS{}, dir, opts) }

func open(fsys durable.FS, dir string, opts *Options) (*Store, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	switch {
	case o.MaxIdle == 0:
		o.MaxIdle = defaultMaxIdle
	case o.MaxIdle < 0:
		o.MaxIdle = 0
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if err := durable.MkdirAll(fsys, dir, 0o700); err != nil {
		return nil, fmt.Errorf("maildir: %w", err)
	}
	// It may be there because an earlier attempt to make it failed half-way.
	if err := fsys.SyncDir(filepath.Dir(dir)); err != nil {
		return nil, fmt.Errorf("maildir: %w", err)
	}
	lock, err := fsys.Lock(filepath.Join(dir, ".lock"))
	if err != nil {
		return nil, fmt.Errorf("maildir: %w", err)
	}
	limits := ledger.Limits{
		MaxMessage: o.MaxMessage, MaxMailboxes: o.MaxMailboxes, MaxMessages: o.MaxMessages, MaxTombs: o.MaxTombs, Quota: o.Quota,
	}.WithDefaults()
	s := &Store{lock: lock}
	s.close = sync.OnceValue(func() error { return errors.Join(s.ledger.Close(), s.lock.Close()) })
	s.ledger = &ledger.Store{
		Open: func(user string) (ledger.Driver, error) {
			return &driver{
				fsys: fsys, dir: filepath.Join(dir, encodeUser(user)), maxTombs: limits.MaxTombs, log: o.Logger.With("user", user),
				flying: map[string]struct{}{}, touched: map[string]struct{}{},
			}, nil
		},
		MaxIdle: o.MaxIdle,
		Limits:  limits,
		Logger:  o.Logger,
	}
	return s, nil
}

// Account implements mailbox.Store.
func (s *Store) Account(ctx context.Context, user string) (mailbox.Account, error) {
	return s.ledger.Account(ctx, user)
}

// Close implements mailbox.Store. All calls return when the first one is done, what it
// returned.
func (s *Store) Close() error { return s.close() }
