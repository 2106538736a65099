package dial

import (
	"net/netip"
	"syscall"
)

// bindAddressNoPort is IP_BIND_ADDRESS_NO_PORT, the same on all architectures; package syscall
// has it for some only.
const bindAddressNoPort = 24

// lateBind has the kernel choose the port of a bound address at connect and not at
// bind. Then connections to different targets can share a port; without it one address has some 28,000
// ports for all of them together. What fails is left as it is: it was an optimisation.
func lateBind(local netip.Addr, c syscall.RawConn) {
	if !local.IsValid() {
		return
	}
	// The level is that of IPv4 for sockets of both families.
	_ = c.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, bindAddressNoPort, 1)
	})
}
