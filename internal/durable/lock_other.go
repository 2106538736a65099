//go:build !linux && !darwin && !freebsd && !netbsd && !openbsd && !dragonfly && !windows

package durable

import (
	"errors"
	"os"
)

func lock(*os.File) (bool, error) {
	return false, errors.New("durable: this system has no file locks that we know how to use")
}
