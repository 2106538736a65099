//go:build !linux && !darwin && !freebsd && !netbsd && !openbsd && !dragonfly

package control

import (
	"net"
	"os"
)

const maxPath = 103 // 104 or 108 octets with the NUL

// listen makes the socket. For a moment it has the mode that the system gives it: the directory has to protect it.
func listen(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func lockDir(string) (unlock func(), err error) { return func() {}, nil }
