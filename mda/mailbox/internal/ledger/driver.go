package ledger

import (
	"context"
	"fmt"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// A Driver keeps the bodies and the log of one account. An [Account] calls
// Load, Commit and Settle from one goroutine at a time, with no other call of a method that
// takes a *Box or *Msg under way; all others may be called at the same time.
type Driver interface {
	// Load returns the state as the log has it, after repairing what a crash
	// left. It has an INBOX. Load is called again after a Commit that failed.
	Load() (*State, error)

	// Commit makes entries durable, in order. If it fails, the state is thrown
	// away and loaded again.
	Commit(entries []Entry) error

	// Settle lets the bodies follow entries that are committed. After an error
	// the state is loaded again.
	Settle(s *State, effects []Effect) error

	// Stage writes a body, durably, but into no mailbox.
	Stage(ctx context.Context, msg mailspine.Content) (Staged, error)

	// Place gives a staged body a durable name in each of the mailboxes, and sets
	// File. After an error, Unplace is called for those whose File is set.
	Place(s Staged, to []Place) error

	// Link gives the body of m, in b, one more name, and sets File. It is durable
	// after Sync. fs.ErrNotExist means that there is no such body any more.
	Link(b *Box, m *Msg, to *Place) error

	// Sync makes the linked names durable.
	Sync(to []Place) error

	// Unplace takes back names that were given by Place or Link for nothing.
	Unplace(to []Place)

	// MakeBox prepares the place for a mailbox that is about to be made, and
	// UnmakeBox takes that back when it was not.
	MakeBox(name string) error
	UnmakeBox(name string)

	// Body opens a body.
	Body(b *Box, m *Msg) (mailbox.Body, error)

	// Close gives back what the driver holds.
	Close(s *State) error
}

// Staged is a body without a mailbox.
type Staged interface {
	Size() int64
	// Discard gives back its place. Names that it got from Place stay.
	Discard()
}

// A Place is where a body is to go.
type Place struct {
	Box   string // the mailbox's name
	Key   string // unique in the account
	Flags []mailbox.Flag
	File  string // set by the driver: its own name for it
}

// Limits bound an account. Zero fields mean the defaults.
type Limits struct {
	MaxMessage   int64              // octets of one message
	MaxMailboxes int                // of an account
	MaxMessages  int                // of a mailbox
	MaxTombs     int                // UIDs of expunged messages that a mailbox remembers
	Quota        mailbox.QuotaLimit // of accounts for which none was set; zero: none
}

// The defaults of Limits.
const (
	DefaultMaxMessage   = 100 << 20
	DefaultMaxMailboxes = 5000
	DefaultMaxMessages  = 1 << 20
	DefaultMaxTombs     = 50_000
)

// WithDefaults fills in what is zero.
func (l Limits) WithDefaults() Limits {
	def := func(p *int, d int) {
		if *p <= 0 {
			*p = d
		}
	}
	if l.MaxMessage <= 0 {
		l.MaxMessage = DefaultMaxMessage
	}
	def(&l.MaxMailboxes, DefaultMaxMailboxes)
	def(&l.MaxMessages, DefaultMaxMessages)
	def(&l.MaxTombs, DefaultMaxTombs)
	return l
}

func limitError(what string, max int) error {
	return fmt.Errorf("%w: %s: at most %d", mailbox.ErrLimit, what, max)
}
