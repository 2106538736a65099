package durable

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"strconv"
)

// OS is the operating system's file system. The zero value is all there is.
type OS struct{}

var _ FS = OS{}

// OpenFile implements [FS].
func (OS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag&^os.O_APPEND, perm)
	if err != nil {
		return nil, err // not a nil *os.File in an interface
	}
	return osFile{f}, nil
}

// Rename implements [FS].
func (OS) Rename(oldname, newname string) error { return os.Rename(oldname, newname) }

// Link implements [FS].
func (OS) Link(oldname, newname string) error { return os.Link(oldname, newname) }

// Remove implements [FS].
func (OS) Remove(name string) error { return os.Remove(name) }

// Mkdir implements [FS].
func (OS) Mkdir(name string, perm fs.FileMode) error { return os.Mkdir(name, perm) }

// ReadDir implements [FS].
func (OS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

// Stat implements [FS].
func (OS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// SyncDir implements [FS].
func (OS) SyncDir(name string) error { return syncDir(name) }

// Free implements [FS].
func (OS) Free(name string) (int64, error) { return free(name) }

// Lock implements [FS].
func (OS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	held, err := lock(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	if !held {
		// The holder writes its number just after it has the lock, so it may not be
		// there yet; then it is not told.
		var b [32]byte
		n, _ := f.ReadAt(b[:], 0)
		f.Close()
		pid, _ := strconv.Atoi(string(bytes.TrimSpace(b[:n])))
		return nil, &LockedError{Name: name, PID: pid}
	}
	// The number is for people; that it cannot be written is no reason not to start.
	if f.Truncate(0) == nil {
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

type osFile struct{ *os.File }

func (f osFile) Sync() error { return syncFile(f.File) }
