//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath leaves room for the NUL at the end.
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// listen makes the socket. net.Listen would bind it and listen in one step, with a mode that the umask decides,
// and the umask belongs to the whole process.
func listen(path string) (l net.Listener, err error) {
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // FileListener has a descriptor of its own
	// On Linux the file gets the mode that the socket has. Elsewhere this does nothing, or fails; until
	// it listens, nobody can connect, and by then the Chmod below has been.
	_ = unix.Fchmod(fd, 0o600)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	if fi, err := os.Lstat(path); err != nil {
		return nil, err
	} else if fi.Mode().Perm() != 0o600 {
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, err
		}
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	if l, err = net.FileListener(f); err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("the listener is a %T", l)
	}
	u.SetUnlinkOnClose(true)
	return u, nil
}

// lockDir waits up to a second for others who make or replace a socket in a directory.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for range 100 {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.New("another process has locked the directory")
	}
	return nil, os.NewSyscallError("flock", err)
}
