package mailbox

import (
	"context"
	"io"
	"time"

	"github.com/mailspine/mailspine"
)

// A Store has the accounts of many users.
//
// The methods of Store, [Account], [Mailbox] and [Watcher] are safe for
// concurrent use. Account and Mailbox values are handles that hold nothing and
// need no Close; they stay valid until the Store is closed. Slices given to a
// method are not kept; those returned belong to the caller. Times are wall
// times. Changes are durable, in the sense of the driver, before a method
// returns nil, and happen entirely or not at all; when the error is not nil,
// nothing has changed, except that after the failure of a disk or the end of a
// context a change may turn out to have happened. Errors that are not listed in
// this package are temporary, as mailspine.Status has it.
type Store interface {
	// Account returns the account of a user. It is made, with an INBOX, when it
	// does not exist: which users there are is the business of whoever asks.
	// The name is taken as it is, octet for octet; see [CheckUser] for which
	// names there can be. Other names are [ErrBadName].
	Account(ctx context.Context, user string) (Account, error)

	// Close waits for operations under way and gives back what the store holds.
	// Later operations return [ErrClosed], and so do [Watcher.Next] calls that wait.
	Close() error
}

// An Account has the mailboxes of one user, INBOX always among them. What
// spans mailboxes is here: names, quota, watching, and delivery, which is one
// atomic step even into several mailboxes. Hence the ten methods.
//
// Mailbox names are cleaned with [CleanName] by each method that takes one.
type Account interface {
	// Mailboxes lists the mailboxes by name in octet order, INBOX first, and
	// also the names that are subscribed to without there being a mailbox
	// (NonExistent).
	Mailboxes(ctx context.Context) ([]Info, error)

	// Open returns a mailbox, or [ErrNoMailbox]. The handle follows the mailbox when
	// it is renamed; once it is deleted every method returns ErrNoMailbox, even if
	// there is another one of that name by then.
	Open(ctx context.Context, name string) (Mailbox, error)

	// Create makes a mailbox and those above it that are missing. [ErrExists] if
	// there is one, INBOX included. [ErrLimit] if there are too many.
	Create(ctx context.Context, name string, opts CreateOptions) error

	// Delete removes a mailbox with its messages. Mailboxes below it stay. INBOX
	// cannot be deleted: [ErrInbox]. Subscriptions stay (RFC 9051 section
	// 6.3.7).
	Delete(ctx context.Context, name string) error

	// Rename gives a mailbox and all those below it new names in one step; their
	// UIDs and UIDValidity stay. Missing mailboxes above the new name are made.
	// ErrExists if one of the new names is taken; [ErrBadName] if the new name is below the
	// old one. To rename INBOX is to move its messages into a new mailbox: INBOX
	// stays, empty, and what is below it stays where it is (RFC 9051 section
	// 6.3.6).
	Rename(ctx context.Context, from, to string) error

	// SetSubscribed adds a name to the subscriptions or takes it away. There
	// need be no mailbox of that name (RFC 9051 section 6.3.7).
	SetSubscribed(ctx context.Context, name string, subscribed bool) error

	// Deliver puts a message into one or several mailboxes, all or nothing. Its
	// octets are kept exactly as they are and stored once. The quota is
	// reserved before the first octet is written.
	//
	// With DeliverOptions.ID it is idempotent: a mailbox that got a message
	// with that ID within the last [MaxDeliveries] deliveries of the account
	// gets it no second time, even when the process ended in between. That is for
	// queues, which repeat a delivery when they could not note its success.
	Deliver(ctx context.Context, msg mailspine.Content, opts DeliverOptions) (Delivered, error)

	// Quota returns limits and usage.
	Quota(ctx context.Context) (Quota, error)

	// SetQuota changes the limits. Usage over the limits stays and stops
	// everything that would add to it.
	SetQuota(ctx context.Context, limit QuotaLimit) error

	// Watch returns a Watcher of all changes that happen after Watch returns.
	// So watch first and take a Snapshot then. The Watcher must be closed.
	// ctx bounds the call only.
	Watch(ctx context.Context) (Watcher, error)
}

// A Mailbox is an ordered set of messages. UIDs that are not (or no longer)
// there are ignored by the methods that take several, because another session
// may have expunged them a moment ago.
//
// The ten methods are what IMAP with CONDSTORE, QRESYNC, MOVE and UIDPLUS asks
// of one mailbox, each a step that must be atomic, and POP3's lock.
type Mailbox interface {
	// Info returns the state of the mailbox, without looking at each message.
	Info(ctx context.Context) (Info, error)

	// Snapshot returns the mailbox with all its messages at one moment.
	Snapshot(ctx context.Context) (Snapshot, error)

	// Append is Account.Deliver into this mailbox alone.
	Append(ctx context.Context, msg mailspine.Content, opts AppendOptions) (Copy, error)

	// Body returns the octets of a message, or [ErrNoMessage]. It stays readable
	// until it is closed, even if the message is expunged meanwhile.
	Body(ctx context.Context, uid UID) (Body, error)

	// SetFlags changes flags. Messages whose flags are already as wanted keep their
	// ModSeq. All changed messages get the same new ModSeq.
	SetFlags(ctx context.Context, uids []UID, change FlagChange) (FlagResult, error)

	// Expunge removes those of the messages that have the flag \Deleted; see
	// ExpungeOptions for others. The result is in ascending order.
	Expunge(ctx context.Context, uids []UID, opts ExpungeOptions) ([]UID, error)

	// CopyTo copies messages with their flags and dates to the mailbox dest of the
	// same account, which may be this one, in the order of their UIDs. All or
	// nothing; ErrNoMailbox if there is no dest.
	CopyTo(ctx context.Context, uids []UID, dest string) (Copied, error)

	// MoveTo is CopyTo and the removal of the originals in one step: at no
	// moment is a message in both mailboxes or in none (RFC 6851). Within one
	// mailbox it gives the messages new UIDs.
	MoveTo(ctx context.Context, uids []UID, dest string) (Copied, error)

	// Changes returns what is new, changed or gone since a ModSeq, or [ErrModSeqTooOld]
	// when that is no longer known: take a Snapshot then. Changes since 0 are always
	// known as long as nothing was forgotten. A since in the future is answered
	// with no changes.
	Changes(ctx context.Context, since ModSeq) (ChangeSet, error)

	// LockMaildrop takes the exclusive lock of RFC 1939 section 4, which excludes
	// other LockMaildrop calls and nothing else, until release is called (more than
	// once does no harm). It does not wait: [ErrInUse] if it is taken.
	LockMaildrop(ctx context.Context) (release func(), err error)
}

// A UID names a message of a mailbox (RFC 9051 section 2.3.1.1). Zero is none.
type UID uint32

// A ModSeq counts the changes of a mailbox: it is at least 1 and below 1<<63 (RFC
// 7162 section 3.1).
type ModSeq uint64

// An Info is the state of a mailbox.
type Info struct {
	Name string
	// ID names the mailbox for as long as it exists, through renames (RFC 8474
	// section 4): letters, digits, '-' and '_'.
	ID         string
	SpecialUse SpecialUse // "": none
	Subscribed bool
	// NonExistent is set for a name that is subscribed to without there being a
	// mailbox. All below is zero then.
	NonExistent bool

	UIDValidity uint32
	UIDNext     UID    // larger than each UID given so far
	ModSeq      ModSeq // of the last change; 1 for a new mailbox

	Messages int
	Unseen   int   // without \Seen
	Deleted  int   // with \Deleted
	Size     int64 // octets of all messages together
}

// A MessageInfo is what is known of a message without reading it.
type MessageInfo struct {
	UID    UID
	ModSeq ModSeq // of the last change of its flags, at first of its arrival
	Flags  []Flag // canonical and sorted; nil: none
	// InternalDate is when it was received (RFC 9051 section 2.3.3), in UTC and
	// with seconds.
	InternalDate time.Time
	Size         int64 // in octets
	// EmailID is the same for all copies of a message in an account, and for no
	// other message (RFC 8474 section 5.1): letters, digits, '-' and '_'.
	EmailID string
}

// A Snapshot is a mailbox at one moment.
type Snapshot struct {
	Info     Info
	Messages []MessageInfo // by UID, ascending
}

// A ChangeSet is what happened to a mailbox since some ModSeq.
type ChangeSet struct {
	// Info is the state that the changes lead to. Ask next time for changes
	// since Info.ModSeq; if Info.UIDValidity is not the one known before, that
	// which was known is void (it cannot happen while the handle is valid).
	Info     Info
	Changed  []MessageInfo // new, or with other flags; by UID, ascending
	Expunged []UID         // ascending
}

// A Body is the octets of a message. Read at any offset, from several
// goroutines if need be, and close it.
type Body interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// CreateOptions belong to Account.Create. The zero value is a plain mailbox.
type CreateOptions struct {
	// SpecialUse says what the mailbox is for; "": nothing. Each use is given to
	// one mailbox only: ErrExists otherwise (RFC 6154 section 3 lets a server refuse).
	SpecialUse SpecialUse
}

// DeliverOptions belong to Account.Deliver. The zero value delivers into INBOX.
type DeliverOptions struct {
	// Mailboxes are the targets; nil: INBOX. One named twice gets one copy. At
	// most MaxTargets.
	Mailboxes []string
	// Create makes targets that are missing; otherwise ErrNoMailbox.
	Create bool
	// Flags are those of the new message; nil: none.
	Flags []Flag
	// InternalDate is when the message was received; zero: now.
	InternalDate time.Time
	// ID makes the delivery idempotent (see Account.Deliver). Two deliveries of
	// an account with the same ID are the same. At most 1,024 octets; "": always
	// a new message.
	ID string
}

// A Delivered tells where a message went.
type Delivered struct {
	Copies []Copy // one for each target, in the order of DeliverOptions.Mailboxes
}

// A Copy is a message in a mailbox.
type Copy struct {
	Mailbox     string
	UIDValidity uint32
	UID         UID
	ModSeq      ModSeq
	// Repeated is set when the mailbox had got the message before, under the same
	// DeliverOptions.ID. UID is the one of that time, and the message may have been
	// moved or expunged since. ModSeq is 0.
	Repeated bool
}

// AppendOptions belong to Mailbox.Append; the zero value means no flags, now.
type AppendOptions struct {
	Flags        []Flag
	InternalDate time.Time // zero: now
}

// A FlagOp says what is done with the flags of a FlagChange.
type FlagOp uint8

// The FlagOps.
const (
	AddFlags     FlagOp = iota // besides those that are set
	RemoveFlags                // take them away
	ReplaceFlags               // only these
)

// A FlagChange is a change of flags.
type FlagChange struct {
	Op    FlagOp
	Flags []Flag // see CleanFlags for the rules
	// UnchangedSince leaves alone each message whose ModSeq is larger (RFC 7162
	// section 3.1.3); nil: none.
	UnchangedSince *ModSeq
}

// A FlagResult tells what SetFlags did. Messages that are in neither list
// were as wanted already, or do not exist.
type FlagResult struct {
	Changed   []MessageInfo // with their new flags; by UID, ascending
	Conflicts []UID         // changed since UnchangedSince, and left alone; ascending
	ModSeq    ModSeq        // of the mailbox afterwards
}

// ExpungeOptions belong to Mailbox.Expunge. The zero value removes of the given
// messages those that have \Deleted.
type ExpungeOptions struct {
	All bool // of all messages, not only of those given
	Any bool // with and without \Deleted
}

// A Copied tells what CopyTo and MoveTo did: the UID of each original and of its
// copy, as COPYUID of RFC 4315 wants it.
type Copied struct {
	UIDValidity  uint32 // of the destination
	Source, Dest []UID  // of the same length, ascending
}

// A QuotaLimit bounds an account. Zero fields mean no limit.
type QuotaLimit struct {
	Bytes    int64
	Messages int64
}

// A Quota is the limits of an account and what is used of them. Each copy of a
// message counts, even though drivers store it once.
type Quota struct {
	Limit    QuotaLimit
	Bytes    int64
	Messages int64
}

// A Watcher tells what changes in an account. Changes are coalesced: for each
// mailbox there is at most one event waiting, so that a slow reader costs
// nothing and blocks nobody.
type Watcher interface {
	// Next waits for changes and returns them, in no order; or ctx's error, or
	// ErrClosed. Only one goroutine at a time may call it.
	Next(ctx context.Context) ([]Event, error)
	// Close ends the watching. A Next that waits returns ErrClosed.
	Close() error
}

// An Event says that something changed. Mailbox.Changes or Account.Mailboxes
// tell what.
type Event struct {
	// ID and Mailbox name the mailbox; "": too much happened, look at all of them.
	ID, Mailbox string
	// ModSeq is the mailbox's by now. Changes since the last ModSeq known tell
	// what there is.
	ModSeq ModSeq
	// Listed is set when Account.Mailboxes looks different: the mailbox was
	// created, renamed, subscribed to or unsubscribed from.
	Listed bool
	// Gone is set when the mailbox was deleted.
	Gone bool
}

// The bounds of the contract. Drivers may have smaller ones of their own
// options, which they answer with ErrLimit.
const (
	// MaxDeliveries is how many deliveries with an ID an account remembers.
	MaxDeliveries = 1024
	// MaxTargets is the largest number of mailboxes of one Deliver.
	MaxTargets = 32
	// MaxUIDs is the largest number of messages that one SetFlags, Expunge,
	// CopyTo or MoveTo call is given; ErrLimit beyond it, and nothing is changed. So
	// it is when the change is too large for a driver's log: over 16 MiB with all
	// keywords. Expunge with ExpungeOptions.All has no bound.
	MaxUIDs = 100_000
)
