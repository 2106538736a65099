package control

import (
	"net"

	"golang.org/x/sys/unix"
)

// credentials asks the kernel who has connected: the effective user at the time of connect.
func credentials(c *net.UnixConn) (peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err == nil {
		err = cerr
	}
	if err != nil {
		return peer{}, err
	}
	return peer{known: true, uid: cred.Uid, pid: cred.Pid}, nil
}
