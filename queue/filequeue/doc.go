// Package filequeue is the queue.Store for one process and one directory: what
// Put has accepted survives kill -9 and a power cut.
//
//	store, err := filequeue.Open("/var/spool/mailspine", nil)
//
// # Files
//
//	lock                    locked while a store is open; holds the process ID
//	journal-0000000001.log  what happened, in order: segments of a log
//	bodies/                 content over Options.InlineMax, a file each
//	stage/                  messages that are arriving; emptied by Open
//	damaged/                what Doctor has repaired, as it was; nobody reads it or removes it
//
// Directories are made with mode 0700 and files with 0600. No name in a message
// reaches a path.
//
// The journal is only appended to. Its records are checksummed, and all who
// wait for one share a single fdatasync: a lone writer waits for nobody, and
// any number of writers cost one sync at a time. Content up to Options.InlineMax is in
// the record; larger content is in a file of its own that is moved into bodies/ and
// synced, and the directory synced, before the record that refers to it is written.
// A message that was staged (mailspine.Stager) is adopted as it is: its octets
// are written once and synced once, headers prepended on the way in the record.
//
// # Space
//
// When the journal is larger than twice what is alive in it plus two segments, its
// oldest segment is emptied: what is alive there is appended anew, and the file
// removed. So the journal has at most
//
//	2 x (live records) + 3 x Options.SegmentSize
//
// octets but for a disk that refuses the copy, and every octet is copied about once
// for each time that as much has been written. Segments go in the order in
// which they came, so that the record of an end never goes before that
// of the beginning.
//
// # Commands
//
// What an operator does with items (queue.Controller) is one small record for up to 1,000 of them, in
// the same journal.
//
// # Versions
//
// The format is version 2. A journal of version 1 is read; what follows goes to a new segment, and a program
// that knows version 1 only then refuses the store and says so.
//
// # Failures
//
// A torn tail, left by a crash in the middle of a write, is cut off by Open.
// Damage that no crash explains makes Open fail, with a *CorruptError of
// internal/durable in the chain that names file and place; nothing is thrown away.
// [Doctor] finds all damage, says which messages are lost, and makes a store of the rest. Content in the journal is
// compared with its checksum by Store.Open, content in a file of its own by who reads it from the first octet to the last: the
// last Read fails then, so that half of it does not pass for a message.
//
// When a sync fails, what is on the disk is not known any more, and trying again
// would prove nothing: the store stops accepting, leasing and settling, and
// Health says so, until it is opened again. Content and listings can still be read.
//
// When the disk is full Put fails with an error for which mailspine.Status
// answers 452 4.3.1, leaves nothing behind, and works again when there is room.
// Options.MinFree octets are kept free for the results of deliveries.
//
// # Time
//
// Delays run on the monotonic clock while the process lives. What is stored is wall
// time and delay, so an item never waits longer for a wall clock that was set
// back than it was told to in the first place.
//
// # Memory
//
// Envelopes, IDs and content stay on the disk. An item with its message takes about 150 octets of
// memory, without pointers, so that a million items cost the garbage collector nothing; a route and tenant with
// items take some 200, a reason as many as it has letters, once for all items that have it, and a tombstone about 40.
// What is not needed any more is given back.
//
// A message is found by a hash of its ID. Only its record tells whether it is the one: a Put of
// an ID that is stored already reads it, without holding up anybody.
//
// # Leases
//
// Leases are in memory. They end when the store is opened again, which only
// one process at a time can do; epochs go on rising. A process that dies
// during a delivery has not counted that attempt.
package filequeue
