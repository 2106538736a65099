// Package ledger is the part of a mailbox store that is the same for every
// place where messages are kept: the state of an account, the steps that change
// it, and the interfaces of package mailbox on top of that.
//
// A [State] changes only by an [Entry], a list of [Op] values that is applied as a
// whole. A driver that appends the encoded entries to a log and applies them
// again after a restart has the same state as before: live and replayed
// entries take the same path. What a driver adds is the bodies of the messages and the log: see
// [Driver].
//
// An [Account] runs changes one after the other, but commits those that wait
// at the same time together, so that they share one sync of the log. Readers
// see a change only after it has been committed.
package ledger
