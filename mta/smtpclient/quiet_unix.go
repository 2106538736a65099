//go:build unix

package smtpclient

import (
	"crypto/tls"
	"net"
	"syscall"
)

// quiet reports whether the peer has neither said anything nor hung up, as far as the kernel knows and without
// reading anything. For a connection that is no socket it is true. A deadline of the connection must not be over.
func quiet(conn net.Conn) bool {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn() // a record, whatever is in it, is something said
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	still := false
	err = rc.Read(func(fd uintptr) bool {
		// Sockets of the net package do not block.
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		still = err == syscall.EAGAIN || err == syscall.EINTR // otherwise an octet, the end, or an error
		return true
	})
	return err == nil && still
}
