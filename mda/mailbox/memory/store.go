package memory

import (
	"bytes"
	"context"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/internal/ledger"
)

// Options bound a Store. The zero value, and a nil *Options, mean the defaults.
type Options struct {
	// MaxBytes is how many octets of messages are kept in all, each body counted
	// once; 0: DefaultMaxBytes. Beyond it the error is 452 4.3.1, as for a full disk.
	MaxBytes int64
	// MaxAccounts is how many accounts there can be; 0: 10,000. Beyond it:
	// mailbox.ErrLimit.
	MaxAccounts int

	MaxMessage   int64              // octets of one message; 0: 100 MiB. Beyond it: mailbox.ErrTooBig.
	MaxMailboxes int                // of an account; 0: 5,000
	MaxMessages  int                // of a mailbox; 0: 1,048,576
	MaxTombs     int                // UIDs of expunged messages that each mailbox remembers; 0: 50,000
	Quota        mailbox.QuotaLimit // of accounts for which none was set; zero: none

	Logger *slog.Logger // nil: slog.Default()
}

// DefaultMaxBytes is what Options.MaxBytes 0 means: 256 MiB.
const DefaultMaxBytes = 256 << 20

const defaultMaxAccounts = 10_000

// A Store is a mailbox.Store in memory. Make it with [New].
type Store struct {
	opts   Options
	ledger *ledger.Store

	mu       sync.Mutex
	bytes    int64
	accounts int
}

var _ mailbox.Store = (*Store)(nil)

// New returns a Store with no accounts. opts may be nil.
func New(opts *Options) *Store {
	s := &Store{}
	if opts != nil {
		s.opts = *opts
	}
	if s.opts.MaxBytes <= 0 {
		s.opts.MaxBytes = DefaultMaxBytes
	}
	if s.opts.MaxAccounts <= 0 {
		s.opts.MaxAccounts = defaultMaxAccounts
	}
	s.ledger = &ledger.Store{
		Open:    s.open,
		MaxIdle: -1,
		Logger:  s.opts.Logger,
		Limits: ledger.Limits{
			MaxMessage: s.opts.MaxMessage, MaxMailboxes: s.opts.MaxMailboxes, MaxMessages: s.opts.MaxMessages,
			MaxTombs: s.opts.MaxTombs, Quota: s.opts.Quota,
		}.WithDefaults(),
	}
	return s
}

// Account implements mailbox.Store.
func (s *Store) Account(ctx context.Context, user string) (mailbox.Account, error) {
	return s.ledger.Account(ctx, user)
}

// Close implements mailbox.Store.
func (s *Store) Close() error { return s.ledger.Close() }

func (s *Store) open(string) (ledger.Driver, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.accounts >= s.opts.MaxAccounts {
		return nil, mailbox.ErrLimit
	}
	s.accounts++
	return &driver{store: s, bodies: map[string]*body{}}, nil
}

// take reserves memory for a body, or says that there is none.
func (s *Store) take(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes+n > s.opts.MaxBytes {
		return mailspine.Errorf(452, "4.3.1", "Insufficient system storage")
	}
	s.bytes += n
	return nil
}

func (s *Store) give(n int64) {
	s.mu.Lock()
	s.bytes -= n
	s.mu.Unlock()
}

// A driver keeps the bodies of one account, by their keys. Several keys may
// share a body.
type driver struct {
	store *Store

	mu     sync.Mutex
	bodies map[string]*body
}

type body struct {
	data []byte
	refs int // keys, and one while it is staged
}

var _ ledger.Driver = (*driver)(nil)

func (d *driver) Load() (*ledger.State, error) {
	st := ledger.NewState(d.store.ledger.Limits.MaxTombs)
	_, err := st.Apply(ledger.Entry{{Kind: ledger.KindMake, Box: 1, Name: mailbox.Inbox, Validity: st.NextValidity(time.Now())}})
	return st, err
}

func (d *driver) Commit([]ledger.Entry) error { return nil }

func (d *driver) Settle(_ *ledger.State, effects []ledger.Effect) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range effects {
		switch e.Kind {
		case ledger.KindExpunge:
			d.drop(e.Msg.Key)
		case ledger.KindDrop:
			for _, m := range e.Box.Messages() {
				d.drop(m.Key)
			}
		}
	}
	return nil
}

// drop removes a key. d.mu is held.
func (d *driver) drop(key string) {
	if b := d.bodies[key]; b != nil {
		delete(d.bodies, key)
		d.unref(b)
	}
}

func (d *driver) unref(b *body) {
	if b.refs--; b.refs == 0 {
		d.store.give(int64(len(b.data)))
	}
}

func (d *driver) Stage(ctx context.Context, msg mailspine.Content) (ledger.Staged, error) {
	n := msg.Size()
	if err := d.store.take(n); err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	buf.Grow(int(n))
	if err := ledger.Write(ctx, &buf, msg); err != nil {
		d.store.give(n)
		return nil, err
	}
	return &staged{d, &body{data: buf.Bytes(), refs: 1}}, nil
}

type staged struct {
	d *driver
	b *body
}

func (s *staged) Size() int64 { return int64(len(s.b.data)) }

func (s *staged) Discard() {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	s.d.unref(s.b)
}

func (d *driver) Place(s ledger.Staged, to []ledger.Place) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range to {
		d.name(s.(*staged).b, &to[i])
	}
	return nil
}

func (d *driver) name(b *body, to *ledger.Place) {
	to.File = to.Key
	b.refs++
	d.bodies[to.Key] = b
}

func (d *driver) Link(_ *ledger.Box, m *ledger.Msg, to *ledger.Place) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.bodies[m.Key]
	if b == nil {
		return fs.ErrNotExist
	}
	d.name(b, to)
	return nil
}

func (d *driver) Sync([]ledger.Place) error { return nil }

func (d *driver) Unplace(to []ledger.Place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range to {
		d.drop(p.Key)
	}
}

func (d *driver) MakeBox(string) error { return nil }

func (d *driver) UnmakeBox(string) {}

func (d *driver) Body(_ *ledger.Box, m *ledger.Msg) (mailbox.Body, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.bodies[m.Key]
	if b == nil {
		return nil, fs.ErrNotExist
	}
	return reader{bytes.NewReader(b.data)}, nil
}

func (d *driver) Close(*ledger.State) error { return nil }

// reader is a Body: its octets stay as long as somebody has them.
type reader struct{ *bytes.Reader }

func (reader) Close() error { return nil }
