//go:build !linux

package control

import (
	"errors"
	"net"
)

func dialAs(int, string) (net.Conn, error) { return nil, errors.ErrUnsupported }
