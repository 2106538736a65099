package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// An FS is what durable code needs of a file system. Names are paths as package
// os takes them. All methods are safe for concurrent use, and their errors wrap
// those of the system, so that errors.Is finds fs.ErrNotExist, syscall.ENOSPC
// and so on.
//
// It has ten methods because each is a step that can fail by itself, or after
// which the power can go; everything that is made of them is a function.
type FS interface {
	// OpenFile is os.OpenFile. O_APPEND is not supported: a log knows where
	// it ends.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Rename replaces newname, if it exists, in one step. It is durable once the
	// directory of newname is synced.
	Rename(oldname, newname string) error
	// Link gives a file a second name. It fails if newname exists.
	Link(oldname, newname string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Mkdir makes a directory. Its name is durable once its parent is synced.
	Mkdir(name string, perm fs.FileMode) error
	// ReadDir lists a directory, sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Stat is os.Stat.
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in a directory durable as they are now.
	SyncDir(name string) error
	// Lock takes an exclusive lock that the file called name stands for, made if need
	// be, and writes the process ID into it. It does not wait: if another holder is
	// alive the error is a *[LockedError]. Closing gives the lock up; so does the
	// death of the process.
	Lock(name string) (io.Closer, error)
	// Free tells how many octets can still be written in the directory name.
	Free(name string) (int64, error)
}

// A File is an open file. Write appends at the place where the last Write or
// Read ended; ReadAt and WriteAt do not move that. A Write or WriteAt that
// returns fewer octets than it was given returns an error. The methods are
// safe for concurrent use as far as those of os.File are.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Closer
	// Sync makes the content durable, and as much of the metadata as is needed to read
	// it back. If it fails, nothing is known about what was written since the
	// last one that did not, and doing it again proves nothing.
	Sync() error
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
	Name() string
}

// A LockedError is returned by FS.Lock when somebody else holds the lock.
type LockedError struct {
	Name string // of the lock file
	PID  int    // of the holder; 0: not known
}

// Error names the holder.
func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("durable: %s is locked by another process", e.Name)
	}
	return fmt.Sprintf("durable: %s is locked by process %d", e.Name, e.PID)
}

// ErrFailed is matched by the errors of a [Log] after a sync has failed.
var ErrFailed = errors.New("durable: an earlier sync failed, what is on the disk is not known")

// Or returns fsys, or [OS] if it is nil.
func Or(fsys FS) FS {
	if fsys == nil {
		return OS{}
	}
	return fsys
}

// MkdirAll makes a directory and the parents that it lacks, and syncs each
// parent, so that what it made is durable when it returns nil. A directory that is there
// already is left as it is: if a process may have been killed before it had synced
// the name, that is the caller's to sync.
func MkdirAll(fsys FS, name string, perm fs.FileMode) error {
	fi, err := fsys.Stat(name)
	if err == nil {
		if !fi.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: name, Err: errors.New("exists and is no directory")}
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(name)
	if parent == name {
		return err
	}
	if err := MkdirAll(fsys, parent, perm); err != nil { // bounded by the depth of the path
		return err
	}
	if err := fsys.Mkdir(name, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return fsys.SyncDir(parent)
}

// RemoveAll removes a file, or a directory with all that is in it. What is
// missing is no error. Nothing is synced.
func RemoveAll(fsys FS, name string) error {
	fi, err := fsys.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.IsDir() {
		list, err := fsys.ReadDir(name)
		if err != nil {
			return err
		}
		for _, e := range list {
			if err := RemoveAll(fsys, filepath.Join(name, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ReadFile reads a whole file, if it has no more than max octets.
func ReadFile(fsys FS, name string, max int64) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > max {
		return nil, fmt.Errorf("durable: %s is over the limit of %d octets", name, max)
	}
	return b, nil
}

// WriteFile writes a file so that, whatever happens, name is either what it was before
// or has all of data: under a temporary name first, which is synced, renamed,
// and made durable by a sync of the directory. Two calls for one name at the
// same time want a lock around them.
//
// If the last step fails the file may have either content.
func WriteFile(fsys FS, name string, data []byte, perm fs.FileMode) error {
	tmp := name + TempSuffix
	f, err := Create(fsys, tmp, perm, data)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return errors.Join(err, fsys.Remove(tmp))
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return errors.Join(err, fsys.Remove(tmp))
	}
	return fsys.SyncDir(filepath.Dir(name))
}

// TempSuffix ends the temporary name of a file that is being made. A file of
// such a name that is found later is left from a crash, and can be removed.
const TempSuffix = ".tmp"

// Create makes a file, replacing what has that name, writes data to it and
// syncs it. Its name is not durable yet. If it fails nothing is left behind,
// as far as that can be done. If the sync fails for another reason than want of room the error matches [ErrFailed]: no
// data is lost with the file, but the disk is not to be trusted with more.
func Create(fsys FS, name string, perm fs.FileMode, data []byte) (File, error) {
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(data); err == nil {
		if err = f.Sync(); err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
			err = fmt.Errorf("%w: %s: %w", ErrFailed, name, err)
		}
	}
	if err != nil {
		f.Close()
		fsys.Remove(name) // the error that matters is err
		return nil, err
	}
	return f, nil
}
