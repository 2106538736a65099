// Package mailbox says what a mailbox store is: the place where delivered
// messages stay and from which people read them.
//
// A [Store] has accounts, an [Account] has mailboxes, a [Mailbox] has messages.
// The delivery agent of package mda puts messages in; servers of IMAP and POP3 take
// them out. This package has the interfaces, their vocabulary and the rules for
// names and flags; drivers implement them:
//
//   - mailbox/maildir keeps messages in Maildirs, durably;
//   - mailbox/memory keeps them in memory, for tests and demonstrations;
//   - mailbox/mailboxtest checks that a driver keeps the contract.
//
// # UIDs that never lie
//
// The store knows no IMAP, but it is made so that IMAP can be served from it
// without a second database. Messages are immutable; only their flags change.
//
//   - Each message of a mailbox has a [UID], larger than that of every message
//     before it, and never given to another one, not even after it is
//     expunged and the store was closed in between. A mailbox that cannot keep that
//     promise gets a new UIDValidity, and so does a mailbox that is
//     created with the name of a deleted one (RFC 9051 section 2.3.1.1).
//   - Each mailbox has one [ModSeq], which grows with each change of the
//     mailbox, and each message has the ModSeq of its last change (RFC 7162). A
//     ModSeq is on disk before anybody is told of it.
//   - What was expunged leaves a tombstone, so that [Mailbox.Changes] can tell a
//     client that was away which messages are gone (QRESYNC). Tombstones are
//     bounded; who was away for too long gets [ErrModSeqTooOld] and starts anew.
//   - Sequence numbers are not here: they are a view that belongs to an IMAP
//     session, made from [Mailbox.Snapshot] and kept up with Changes.
//   - The flag \Recent is not here either: RFC 9051 has abolished it.
//
// # Names
//
// The names of mailboxes are paths with [Separator] between their parts:
// "Archive/2026". See [CleanName] for the rules. Drivers encode the names of
// users and mailboxes before they touch a file system, so that no name can
// lead out of its place or collide with another one.
package mailbox
