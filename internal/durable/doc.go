// Package durable is the only code of this module that makes data survive a
// crash: everything that must last is written through it, so that every call
// can be made to fail, and the power to be cut at every call, in one place (see
// package durabletest).
//
// It has these layers:
//
//   - [FS] and [File], the few operations on files whose order decides what
//     survives, and [OS], which is the operating system's;
//   - [WriteFile] and [Create], for whole files: written under a temporary
//     name, synced, renamed, and the directory synced;
//   - [Log], an append-only file of checksummed records with group commit: all
//     who wait share one fdatasync, and a lone writer waits for nobody;
//   - [Salvage], which reads what can be read of a log that is damaged;
//   - [DirSync], for names that many make in one directory: they share the syncs;
//   - [Journal], a locked directory with one Log that its owner replaces by a shorter one.
//
// # What is promised
//
// Data is durable when File.Sync returned nil, and a name when FS.SyncDir of its
// directory did. Nothing else is relied upon: not that a rename reaches the disk before
// or after the data it names, not that writes reach it in order, not that a
// sector is written whole unless it was synced.
//
// # Failed syncs
//
// After a failed sync the kernel may have thrown the data away and marked it clean, and a
// second sync would then report success for data that is lost. So a sync is never
// repeated: a Log whose sync failed refuses everything from then on ([ErrFailed]), until
// the file is opened again. What is read then may still be only in memory, so
// OpenLog writes the last batch anew, whole as it was read, and syncs that.
//
// # Other systems
//
// On Linux data is synced with fdatasync, on Darwin with F_FULLFSYNC, elsewhere
// with what os.File.Sync does. Windows cannot sync a directory; there the names of new
// files are as durable as NTFS's own journal makes them. Nor does it let a file be renamed or
// removed that os.OpenFile has open, which [CreateLog] and the callers of Rename here
// do: this package builds there, and is not known to work. Locks are flock on
// Unix and LockFileEx on Windows.
package durable
