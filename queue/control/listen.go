package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// probeTimeout bounds asking whether somebody answers at a socket.
const probeTimeout = 2 * time.Second

// Listen makes a Unix socket with mode 0600, for Serve; nobody can connect to it before it has that mode. Its
// directory must exist, and should be one that no other user can write to. A socket that is there already is
// replaced if nobody listens at it, which is what a process leaves that was killed; a file of any other kind
// never is, and neither is a socket that answers, or may. Closing the listener removes the
// socket.
//
// Systems bound the path of a socket, to 107 octets on Linux and 103 elsewhere: a relative one may be shorter.
func Listen(path string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) { return nil, fmt.Errorf("control: listen at %s: %w", path, err) }
	if err := checkPath(path); err != nil {
		return fail(err)
	}
	// Two processes that find the same dead socket must not both replace it.
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if err := clear(path); err != nil {
		return fail(err)
	}
	l, err := listen(path)
	if err != nil {
		return fail(err)
	}
	return l, nil
}

// checkPath refuses what no socket can have for a path. A message of the system would say "invalid argument".
func checkPath(path string) error {
	switch {
	case path == "":
		return errors.New("the path is empty")
	case len(path) > maxPath:
		return fmt.Errorf("the path has %d octets, and that of a Unix socket at most %d here; a relative path may be shorter", len(path), maxPath)
	case strings.HasPrefix(path, "@"):
		return errors.New("a path that begins with @ is no file; write ./@")
	case strings.Contains(path, "\x00"):
		return errors.New("the path has a NUL in it")
	}
	return nil
}

// clear removes a socket at which nobody listens.
func clear(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode().Type() != fs.ModeSocket:
		return errors.New("something is there that is no socket")
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		c.Close()
		return errors.New("another process listens there")
	case errors.Is(err, syscall.ECONNREFUSED): // only this proves that nobody does
		return os.Remove(path)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("a socket is there, and whether somebody listens is not known: %w", err)
}
