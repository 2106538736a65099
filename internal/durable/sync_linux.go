package durable

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// syncFile is fdatasync: the times of the file need not be durable, and leaving them
// out saves a write of the journal when the size did not change.
func syncFile(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := c.Control(func(fd uintptr) {
		// A signal that came before anything was done is no failure of the sync.
		for serr = unix.EINTR; serr == unix.EINTR; {
			serr = unix.Fdatasync(int(fd))
		}
	}); err != nil {
		return err
	}
	if serr != nil {
		return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: serr}
	}
	return nil
}
