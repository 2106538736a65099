// Package maildir is a mailbox store on disk: messages are files in Maildirs,
// and a log beside them keeps what a Maildir cannot, UIDs above all.
//
// # What is where
//
//	dir/.lock                     held as long as the store is open
//	dir/ann@example.org/          one folder for each user: the Maildir of INBOX
//	    cur/ new/ tmp/
//	    mailspine.log             the account's log
//	    .^archive.2026/           the mailbox Archive/2026
//	        cur/ new/ tmp/
//
// The layout is that of Maildir++, except that names are encoded so that they
// are safe and different on every file system, also on those that take upper and
// lower case, or the Unicode forms of a letter, for the same: an upper-case letter is ^ and the lower-case
// one, other characters than letters, digits, - _ @ and + are = and two
// hexadecimal digits for each octet. Names that become too long end with a hash;
// the folder then has the name in a file mailspine.name. Folders are 0700 and files 0600.
//
// Files have the names that Maildir says: unique, with the size (,S=) and, in cur, the
// flags (:2,FS; with ; for : on Windows). The flags with a letter are \Draft D, \Flagged F, $Forwarded
// P, \Answered R, \Seen S and \Deleted T. All other keywords are in the log only.
//
// # Durability
//
// A message is written in this order: a new file in tmp, its octets, sync, rename
// into new (or cur, if it has flags), sync of that folder, an entry in the log, sync of
// the log. Only then is it answered for. A delivery into several mailboxes has
// one file with several names where the file system can do that, and one entry.
// Entries that wait at the same time share a sync.
//
// The log has one entry for each change, checksummed; what a crash tears is cut off.
// It is for the whole account, not for each mailbox, so that moving messages,
// delivering to several mailboxes and renaming them are single, atomic steps.
// It is rewritten when it has grown to over 1 MiB and four times what it would
// have to be, and after an unclean end. Opening an account reads its log and lists its folders.
//
// What a crash leaves between two steps is put right when the account is opened
// the next time: a file without an entry gets a UID (and, as its name has the
// delivery's ID, is recognised when the delivery is repeated), an entry without a file
// is expunged, files that should be gone are removed. An account whose log is lost or
// damaged is built anew from its files: with new UIDs under a new UIDValidity, and without
// keywords, dates other than the files', subscriptions and quota. A damaged log is kept as mailspine.log.damaged.
//
// # Sharing
//
// One process owns the store, and its lock keeps others that use this package out. Other
// programs may deliver into the Maildirs at any time; what they deliver is found when
// the account is opened the next time (accounts that nobody uses are closed after a while).
// Changes that other programs make to flags, by renaming files, are taken over
// then too, if the store was closed cleanly before. They should not do
// that while the account is open.
package maildir
