package dial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
)

// An address that is not ours cannot be bound, and the error says that it was that.
func TestLocalAddrForeign(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := &Guard{AllowPrivate: loopback, LocalAddr: netip.MustParseAddr("192.0.2.1")} // RFC 5737: nobody's
	conn, err := g.DialContext(t.Context(), "tcp", l.Addr().String())
	if err == nil {
		conn.Close()
		t.Fatal("connected from an address that is not ours")
	}
	var se *os.SyscallError
	if !errors.As(err, &se) || se.Syscall != "bind" {
		t.Errorf("the error is %v (%T), not one of bind", err, err)
	}
	g.LocalAddr = netip.MustParseAddr("::1")
	if conn, err := g.DialContext(t.Context(), "tcp", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("connected to IPv4 from an IPv6 address")
	}
}

// On Linux the port of a bound socket is not chosen before it connects.
func TestLateBind(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("for Linux")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var value int
	g := &Guard{AllowPrivate: loopback, LocalAddr: netip.MustParseAddr("127.0.0.2")}
	g.Control = func(_ context.Context, _, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { value, err = lateBound(int(fd)) })
	}
	conn, derr := g.DialContext(t.Context(), "tcp", l.Addr().String())
	if derr != nil {
		t.Fatal(derr)
	}
	conn.Close()
	if err != nil || value != 1 {
		t.Errorf("the option is %d, %v", value, err)
	}
}
