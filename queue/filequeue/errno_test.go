package filequeue

import "syscall"

const (
	noSpace = syscall.ENOSPC
	ioError = syscall.EIO
)
