package mailbox

import "errors"

// The errors of a Store, matched with errors.Is.
var (
	ErrClosed       = errors.New("mailbox: closed")
	ErrNoMailbox    = errors.New("mailbox: no such mailbox")
	ErrNoMessage    = errors.New("mailbox: no such message")
	ErrExists       = errors.New("mailbox: exists already")
	ErrInbox        = errors.New("mailbox: INBOX cannot be deleted")
	ErrBadName      = errors.New("mailbox: bad name")
	ErrBadFlag      = errors.New("mailbox: bad flag")
	ErrModSeqTooOld = errors.New("mailbox: changes that old are not known any more")
	ErrInUse        = errors.New("mailbox: maildrop is in use")

	// ErrOverQuota means that there is no room in the account now. Nothing was
	// written. Towards a sender it is 452 4.2.2: mail waits until somebody
	// tidies up.
	ErrOverQuota = errors.New("mailbox: over quota")
	// ErrTooBig means that the message would not even fit into the empty
	// account, or is over the store's limit for one message. Towards a sender
	// it is 552 5.2.3.
	ErrTooBig = errors.New("mailbox: message is too big")
	// ErrLimit means that a bound of the store would be passed: too many
	// mailboxes, messages, subscriptions, targets.
	ErrLimit = errors.New("mailbox: limit reached")
	// ErrReadOnly is for drivers that have mailboxes which cannot be changed.
	ErrReadOnly = errors.New("mailbox: read-only")
)
