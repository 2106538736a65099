//go:build !linux

package dial

import (
	"net/netip"
	"syscall"
)

// lateBind is for Linux.
func lateBind(netip.Addr, syscall.RawConn) {}
