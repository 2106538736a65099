package dial

import "syscall"

func lateBound(fd int) (int, error) {
	return syscall.GetsockoptInt(fd, syscall.IPPROTO_IP, bindAddressNoPort)
}
