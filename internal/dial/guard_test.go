package dial

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func TestCheck(t *testing.T) {
	for _, c := range []struct{ addr, what string }{ // what "": allowed
		{"8.8.8.8", ""}, {"1.1.1.1", ""}, {"9.255.255.255", ""}, {"11.0.0.0", ""}, {"126.255.255.255", ""}, {"128.0.0.0", ""},
		{"172.15.255.255", ""}, {"172.32.0.0", ""}, {"192.167.255.255", ""}, {"192.169.0.0", ""}, {"100.63.255.255", ""}, {"100.128.0.0", ""},
		{"169.253.255.255", ""}, {"169.255.0.0", ""}, {"198.17.255.255", ""}, {"198.20.0.0", ""}, {"223.255.255.255", ""}, {"168.63.129.15", ""}, {"192.0.1.0", ""},
		{"2606:4700::1111", ""}, {"2a00:1450::1", ""}, {"2001:200::1", ""}, {"2001:4860::8888", ""}, {"3fff:1000::1", ""},

		{"127.0.0.1", "loopback"}, {"127.255.255.255", "loopback"}, {"::1", "loopback"},
		{"10.0.0.1", "private"}, {"10.255.255.255", "private"}, {"172.16.0.1", "private"}, {"172.31.255.255", "private"}, {"192.168.0.0", "private"}, {"192.168.255.255", "private"},
		{"fc00::1", "unique local"}, {"fdff::1", "unique local"}, {"fd00:ec2::254", "unique local"},
		{"169.254.1.1", "link-local"}, {"fe80::1", "link-local"}, {"fe80::1%eth0", "link-local"}, {"febf::1", "link-local"}, {"fec0::1", "site-local"},
		{"169.254.169.254", "metadata"}, {"168.63.129.16", "metadata"}, {"100.100.100.200", "shared"},
		{"100.64.0.0", "shared"}, {"100.127.255.255", "shared"},
		{"0.0.0.0", "this network"}, {"0.1.2.3", "this network"}, {"::", "unspecified"},
		{"224.0.0.1", "multicast"}, {"239.255.255.255", "multicast"}, {"ff02::1", "multicast"}, {"ff02::1%eth0", "multicast"},
		{"255.255.255.255", "broadcast"}, {"240.0.0.1", "reserved"}, {"192.0.0.8", "protocol assignments"},
		{"192.0.2.1", "documentation"}, {"198.51.100.1", "documentation"}, {"203.0.113.1", "documentation"}, {"2001:db8::1", "documentation"}, {"3fff::1", "documentation"},
		{"198.18.0.1", "benchmarking"}, {"198.19.255.255", "benchmarking"}, {"192.88.99.1", "6to4"}, {"100::1", "discard"}, {"5f00::1", "segment"},

		// Addresses that lead to others.
		{"::ffff:8.8.8.8", ""}, {"::ffff:127.0.0.1", "loopback"}, {"::ffff:10.0.0.1", "private"}, {"::ffff:169.254.169.254", "metadata"}, {"::ffff:0.0.0.0", "this network"},
		{"::127.0.0.1", "IPv4-compatible"}, {"::8.8.8.8", "IPv4-compatible"},
		{"64:ff9b::8.8.8.8", ""}, {"64:ff9b::127.0.0.1", "NAT64"}, {"64:ff9b::10.1.2.3", "NAT64"}, {"64:ff9b::169.254.169.254", "metadata"}, {"64:ff9b:1::8.8.8.8", "local use"}, {"64:ff9b:0:1::8.8.8.8", "not global unicast"},
		{"2002:808:808::1", ""}, {"2002:7f00:1::1", "6to4"}, {"2002:a00:1::1", "6to4"}, {"2002:a9fe:a9fe::", "6to4"}, {"2002:c0a8:101::1", "6to4"},
		{"2001:0:808:808::1", "Teredo"}, {"2001:10::1", "protocol assignments"},
		{"2a00:1450::5efe:8.8.8.8", ""}, {"2a00:1450::5efe:10.0.0.1", "ISATAP"}, {"2a00:1450::200:5efe:127.0.0.1", "ISATAP"}, {"2a00:1450::100:5efe:127.0.0.1", ""},
		// What is not given out to anyone.
		{"4000::1", "not global unicast"}, {"1::1", "not global unicast"}, {"e000::1", "not global unicast"},
	} {
		addr := netip.MustParseAddr(c.addr)
		for about, g := range map[string]*Guard{"nil": nil, "zero": {}, "other allowances": {AllowPrivate: []netip.Prefix{netip.MustParsePrefix("10.9.9.0/24"), {}}}} {
			err := g.Check(addr)
			if c.what == "" {
				if err != nil {
					t.Errorf("%s Guard: %v", about, err)
				}
				continue
			}
			var fe *ForbiddenError
			if !errors.Is(err, ErrForbidden) || !errors.As(err, &fe) || fe.Addr != addr || !fe.Range.IsValid() || !strings.Contains(fe.What, c.what) {
				t.Errorf("%s Guard: %s: %v", about, addr, err)
			}
		}
	}
	if err := new(Guard).Check(netip.Addr{}); !errors.Is(err, ErrForbidden) {
		t.Errorf("the zero Addr: %v", err)
	}
}

func TestAllowPrivate(t *testing.T) {
	g := &Guard{
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd12::/16"), netip.MustParsePrefix("fe80::/10")},
		Forbid: []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24"), netip.MustParsePrefix("8.8.8.0/24"), netip.MustParsePrefix("2a00:1450::/32"),
			netip.MustParsePrefix("::ffff:9.9.9.0/120")}, // an IPv4 prefix, written mapped
	}
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "::ffff:127.0.0.1": true, "::1": false, "10.1.1.1": true, "10.2.0.1": false, "fd12::1": true, "fd13::1": false, "fe80::1%eth0": true,
		"10.1.2.1": false, "8.8.8.8": false, "8.8.9.8": true, "9.9.9.9": false, "::ffff:9.9.9.9": false, "9.9.8.9": true, "2a00:1450::1": false, "64:ff9b::8.8.8.8": false, "2002:808:808::1": false,
		// To allow an address is not to allow what a translator makes of it.
		"64:ff9b::127.0.0.1": false, "2002:7f00:1::1": false, "::127.0.0.1": false,
	} {
		if err := g.Check(netip.MustParseAddr(addr)); (err == nil) != want {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// Whatever is said of an IPv4 address holds for each form that leads to it.
func TestCheckForms(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var v4 [4]byte
		n := rapid.OneOf(rapid.Uint32(), rapid.SampledFrom([]uint32{0x7f000001, 0x0a000001, 0xc0a80101, 0xa9fea9fe, 0x64400001, 0x08080808})).Draw(t, "address")
		binary.BigEndian.PutUint32(v4[:], n)
		want := new(Guard).Check(netip.AddrFrom4(v4)) == nil
		var nat, six, isatap [16]byte
		copy(nat[:], []byte{0, 0x64, 0xff, 0x9b})
		copy(nat[12:], v4[:])
		copy(six[:], []byte{0x20, 0x02})
		copy(six[2:], v4[:])
		copy(isatap[:], []byte{0x2a, 0, 0x14, 0x50, 0, 0, 0, 0, 0, 0, 0x5e, 0xfe})
		copy(isatap[12:], v4[:])
		for _, a := range []netip.Addr{netip.AddrFrom16(netip.AddrFrom4(v4).As16()), netip.AddrFrom16(nat), netip.AddrFrom16(six), netip.AddrFrom16(isatap)} {
			if got := new(Guard).Check(a) == nil; got != want {
				t.Fatalf("%s is allowed: %v, and %s: %v", netip.AddrFrom4(v4), want, a, got)
			}
		}
	})
}

// listener accepts connections and keeps where they came from.
type listener struct {
	net.Listener
	wg sync.WaitGroup

	mu   sync.Mutex
	from []string
}

func listen(t *testing.T, addr string) *listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("cannot listen on %s here: %v", addr, err)
	}
	ln := &listener{Listener: l}
	ln.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			ln.mu.Lock()
			ln.from = append(ln.from, c.RemoteAddr().String())
			ln.mu.Unlock()
			c.Close()
		}
	})
	t.Cleanup(func() { ln.stop() })
	return ln
}

// stop returns the connections that came, all of them.
func (l *listener) stop() []string {
	l.Close()
	l.wg.Wait()
	return l.from
}

func (l *listener) port() string {
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// Bad input of issue 2: an MX at 127.0.0.1 or 10.0.0.1.
func TestDialRefuses(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	for _, g := range []*Guard{nil, {}, {Resolver: fixed("127.0.0.1")}} {
		for _, host := range []string{"127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "64:ff9b::7f00:1", "fe80::1%lo", ""} {
			begin := time.Now()
			conn, err := g.DialContext(t.Context(), "tcp", net.JoinHostPort(host, l.port()))
			var fe *ForbiddenError
			if conn != nil || !errors.Is(err, ErrForbidden) || !errors.As(err, &fe) {
				t.Errorf("%s: %v, %v", host, conn, err)
			}
			if d := time.Since(begin); d > 5*time.Second {
				t.Errorf("%s: refused after %v, so something was tried", host, d)
			}
			var op *net.OpError
			if !errors.As(err, &op) || op.Op != "dial" {
				t.Errorf("%s: %T is not what net.Dialer returns", host, err)
			}
			// What it says is for the log.
			if s := mailspine.Status(err); !s.Temporary() || strings.Contains(s.Reply(), l.port()) || strings.Contains(s.Reply(), "127") {
				t.Errorf("%s: status %s", host, s.Reply())
			}
		}
	}
	// A name is as good as its address.
	if _, err := (&Guard{Resolver: fixed("127.0.0.1")}).DialContext(t.Context(), "tcp", "mx.example.org:"+l.port()); !errors.Is(err, ErrForbidden) {
		t.Errorf("by name: %v", err)
	}
	if from := l.stop(); len(from) > 0 {
		t.Errorf("%d connections came through", len(from))
	}
}

func TestDialAllows(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	g := &Guard{AllowPrivate: loopback}
	for _, network := range []string{"tcp", "tcp4"} {
		conn, err := g.DialContext(t.Context(), network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.RemoteAddr().String(); got != l.Addr().String() {
			t.Errorf("connected to %s", got)
		}
		conn.Close()
	}
	g.Resolver = fixed("127.0.0.1")
	conn, err := g.DialContext(t.Context(), "tcp", "mx.example.org:"+l.port())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// fixed resolves every name to some addresses.
func fixed(list ...string) mailspine.Resolver {
	return mailspine.ResolverFunc(func(_ context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
		var a mailspine.Answer
		for _, s := range list {
			if ip := netip.MustParseAddr(s); ip.Is4() == (typ == mailspine.TypeA) {
				a.Addrs = append(a.Addrs, ip)
			}
		}
		if a.Addrs == nil {
			return a, &mailspine.DNSError{Name: name, Type: typ, Kind: mailspine.ErrNoData}
		}
		return a, nil
	})
}

// A name that was looked up and found harmless, and leads elsewhere when it is
// dialled.
func TestDialRebinding(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	lookups := 0
	r := mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
		if lookups++; lookups == 1 {
			return fixed("8.8.8.8").Lookup(ctx, name, typ)
		}
		return fixed("127.0.0.1").Lookup(ctx, name, typ)
	})
	ips, err := mailspine.LookupA(t.Context(), r, "rebind.example")
	if err != nil {
		t.Fatal(err)
	}
	g := &Guard{Resolver: r}
	if err := g.Check(ips[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := g.DialContext(t.Context(), "tcp4", "rebind.example:"+l.port()); !errors.Is(err, ErrForbidden) {
		t.Errorf("got %v", err)
	}
	if from := l.stop(); len(from) > 0 {
		t.Error("a connection came through")
	}
}

// The system's resolver is guarded in the same way.
func TestDialLocalhost(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	_, err := new(Guard).DialContext(t.Context(), "tcp4", "localhost:"+l.port())
	if err == nil {
		t.Fatal("connected to localhost")
	}
	var de *net.DNSError
	if errors.As(err, &de) {
		t.Skipf("this system does not know localhost: %v", err)
	}
	if !errors.Is(err, ErrForbidden) {
		t.Errorf("got %v", err)
	}
}

// One bad address among those of a name does not spoil the others.
func TestDialSeveralAddresses(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8 without being told")
	}
	l := listen(t, "127.0.0.2:0")
	g := &Guard{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}, Resolver: fixed("127.0.0.1", "::1", "10.0.0.1", "127.0.0.2")}
	conn, err := g.DialContext(t.Context(), "tcp", "mx.example.org:"+l.port())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	g.Resolver = fixed("10.0.0.1", "127.0.0.1")
	var fe *ForbiddenError
	if _, err := g.DialContext(t.Context(), "tcp", "mx.example.org:"+l.port()); !errors.As(err, &fe) || fe.Addr.String() != "10.0.0.1" {
		t.Errorf("the first address decides about the error: %v", err)
	}
}

func TestResolve(t *testing.T) {
	many := []string{"8.8.8.1", "8.8.8.2", "8.8.8.3", "8.8.8.4", "8.8.8.5", "8.8.8.6", "2a00::1", "2a00::2", "2a00::3", "2a00::4", "2a00::5", "2a00::6"}
	g := &Guard{Resolver: fixed(many...)}
	join := func(a []netip.Addr) (s string) {
		for _, ip := range a {
			s += ip.String() + " "
		}
		return strings.TrimSpace(s)
	}
	for network, want := range map[string]string{
		"tcp":  "2a00::1 8.8.8.1 2a00::2 8.8.8.2 2a00::3 8.8.8.3 2a00::4 8.8.8.4",
		"tcp4": "8.8.8.1 8.8.8.2 8.8.8.3 8.8.8.4 8.8.8.5 8.8.8.6",
		"tcp6": "2a00::1 2a00::2 2a00::3 2a00::4 2a00::5 2a00::6",
	} {
		if got, err := g.resolve(t.Context(), network, "x"); err != nil || join(got) != want {
			t.Errorf("%s: %s, %v", network, join(got), err)
		}
	}
	// A temporary failure is told before an absence.
	for typ, other := range map[mailspine.Type]mailspine.Type{mailspine.TypeA: mailspine.TypeAAAA, mailspine.TypeAAAA: mailspine.TypeA} {
		g.Resolver = mailspine.ResolverFunc(func(_ context.Context, name string, asked mailspine.Type) (mailspine.Answer, error) {
			kind := mailspine.ErrNoData
			if asked == typ {
				kind = mailspine.ErrDNSTemporary
			}
			return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: asked, Kind: kind}
		})
		if _, err := g.DialContext(t.Context(), "tcp", "x.example:25"); !errors.Is(err, mailspine.ErrDNSTemporary) {
			t.Errorf("%s fails and %s is absent: %v", typ, other, err)
		}
	}
	g.Resolver = fixed()
	if _, err := g.DialContext(t.Context(), "tcp", "x.example:25"); !errors.Is(err, mailspine.ErrNoData) {
		t.Errorf("without addresses: %v", err)
	}
	// A Resolver that breaks its contract must not make a nil connection.
	g.Resolver = mailspine.ResolverFunc(func(context.Context, string, mailspine.Type) (mailspine.Answer, error) {
		return mailspine.Answer{}, nil
	})
	if conn, err := g.DialContext(t.Context(), "tcp", "x.example:25"); conn != nil || err == nil {
		t.Errorf("got %v, %v", conn, err)
	}
}

func TestDialArguments(t *testing.T) {
	g := &Guard{AllowPrivate: loopback}
	for _, c := range []struct{ network, addr string }{
		{"udp", "127.0.0.1:25"}, {"unix", "/run/docker.sock"}, {"", "127.0.0.1:25"}, {"ip", "127.0.0.1"},
		{"tcp", "127.0.0.1"}, {"tcp", "127.0.0.1:smtp"}, {"tcp", "127.0.0.1:0"}, {"tcp", "127.0.0.1:65536"}, {"tcp", "127.0.0.1:-1"}, {"tcp", "127.0.0.1:"}, {"tcp", "::1:25"}, {"tcp", ""},
		{"tcp6", "127.0.0.1:25"},
	} {
		if conn, err := g.DialContext(t.Context(), c.network, c.addr); err == nil {
			conn.Close()
			t.Errorf("dialled %s %s", c.network, c.addr)
		}
	}
}

func TestControl(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	var got []string
	stop := errors.New("stop")
	g := &Guard{AllowPrivate: loopback, Control: func(_ context.Context, network, address string, c syscall.RawConn) error {
		got = append(got, network+" "+address)
		return c.Control(func(fd uintptr) {
			if fd == 0 {
				t.Error("no socket")
			}
		})
	}}
	conn, err := g.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	// What is refused is not even a socket with options.
	if _, err := g.DialContext(t.Context(), "tcp", "10.0.0.1:25"); !errors.Is(err, ErrForbidden) {
		t.Error(err)
	}
	if len(got) != 1 || got[0] != "tcp4 "+l.Addr().String() {
		t.Errorf("called for %q", got)
	}
	g.Control = func(context.Context, string, string, syscall.RawConn) error { return stop }
	if _, err := g.DialContext(t.Context(), "tcp", l.Addr().String()); !errors.Is(err, stop) {
		t.Error(err)
	}
}

func TestLocalAddr(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8 without being told")
	}
	l := listen(t, "127.0.0.1:0")
	g := &Guard{AllowPrivate: loopback, LocalAddr: netip.MustParseAddr("127.0.0.3")}
	conn, err := g.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != g.LocalAddr {
		t.Errorf("connected from %s", got)
	}
	conn.Close()
}

func TestTimeout(t *testing.T) {
	silent := mailspine.ResolverFunc(func(ctx context.Context, name string, typ mailspine.Type) (mailspine.Answer, error) {
		<-ctx.Done()
		return mailspine.Answer{}, &mailspine.DNSError{Name: name, Type: typ, Kind: mailspine.ErrDNSTemporary, Err: ctx.Err()}
	})
	for _, c := range []struct{ timeout, ctx, want time.Duration }{
		{0, time.Hour, DefaultTimeout}, {-1, time.Hour, DefaultTimeout}, {time.Second, time.Hour, time.Second}, {time.Hour, time.Second, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), c.ctx)
			defer cancel()
			begin := time.Now()
			_, err := (&Guard{Timeout: c.timeout, Resolver: silent}).DialContext(ctx, "tcp", "slow.example:25")
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != c.want {
				t.Errorf("Timeout %v: after %v: %v", c.timeout, time.Since(begin), err)
			}
		})
	}
}

// Each address of a name has its share of the time, so that the first, which
// may swallow packets, leaves some for the others.
func TestTimeoutIsShared(t *testing.T) {
	var left []time.Duration
	g := &Guard{Timeout: time.Hour, Resolver: fixed("127.0.0.1", "127.0.0.2", "127.0.0.3"), AllowPrivate: loopback,
		Control: func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
			deadline, _ := ctx.Deadline()
			left = append(left, time.Until(deadline).Round(time.Minute))
			return errors.New("not today")
		}}
	if _, err := g.DialContext(t.Context(), "tcp", "mx.example:25"); err == nil || !strings.Contains(err.Error(), "today") {
		t.Error(err)
	}
	if want := []time.Duration{20 * time.Minute, 30 * time.Minute, time.Hour}; !slices.Equal(left, want) {
		t.Errorf("the addresses have %v, want %v", left, want)
	}
}

// FuzzDial gives foreign target strings to a Guard that allows nothing, so that
// nothing may come of them but an error.
func FuzzDial(f *testing.F) {
	for _, s := range []string{"127.0.0.1:25", "[::1]:25", "example.org:25", "[fe80::1%lo]:25", ":25", "0:25", "0x7f.1:25", "2130706433:25", "127.1:25", "[::ffff:127.0.0.1]:25", "a\x00b:25", "localhost:smtp", "[", "]:1", "::::"} {
		f.Add("tcp", s)
	}
	f.Add("unix", "/tmp/x")
	nothing := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	f.Fuzz(func(t *testing.T, network, addr string) {
		g := &Guard{Forbid: nothing, AllowPrivate: nothing, Resolver: fixed("127.0.0.1", "::1"), Control: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			t.Errorf("about to connect to %s", address)
			return errors.New("no")
		}}
		conn, err := g.DialContext(t.Context(), network, addr)
		if conn != nil || err == nil {
			t.Fatalf("%q %q: %v, %v", network, addr, conn, err)
		}
	})
}
