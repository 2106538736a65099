package mta

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	proxyproto "github.com/pires/go-proxyproto"
)

// A socksServer is a SOCKS5 proxy (RFC 1928, RFC 1929) for connections to IP addresses. All that it connects to is at
// target.
type socksServer struct {
	l      net.Listener
	wg     sync.WaitGroup
	target string
	user   string // with the password; "": nobody has to log in
	reply  byte   // in place of connecting; 0: it connects
	raw    string // sent in place of everything; "": nothing is
	stall  bool   // it says nothing at all

	mu    sync.Mutex
	asked []string // for which addresses
}

func newSOCKS(t *testing.T, s *socksServer) *socksServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.l = l
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); s.wg.Wait() })
	return s
}

func (s *socksServer) serve(conn net.Conn) {
	defer conn.Close()
	if s.raw != "" || s.stall {
		io.WriteString(conn, s.raw)
		io.Copy(io.Discard, conn)
		return
	}
	br := bufio.NewReader(conn)
	take := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(br, b); err != nil {
			return make([]byte, n)
		}
		return b
	}
	methods := take(int(take(2)[1]))
	if s.user != "" {
		if !bytes.Contains(methods, []byte{2}) {
			conn.Write([]byte{5, 0xff})
			return
		}
		conn.Write([]byte{5, 2})
		user := string(take(int(take(2)[1])))
		password := string(take(int(take(1)[0])))
		if user+":"+password != s.user {
			conn.Write([]byte{1, 1})
			return
		}
		conn.Write([]byte{1, 0})
	} else {
		conn.Write([]byte{5, 0})
	}
	head := take(4)
	n := map[byte]int{1: 4, 4: 16}[head[3]]
	if n == 0 || head[1] != 1 {
		conn.Write([]byte{5, 7, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	ip, _ := netip.AddrFromSlice(take(n))
	port := take(2)
	s.mu.Lock()
	s.asked = append(s.asked, netip.AddrPortFrom(ip, uint16(port[0])<<8|uint16(port[1])).String())
	s.mu.Unlock()
	if s.reply != 0 {
		conn.Write([]byte{5, s.reply, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	out, err := net.Dial("tcp", s.target)
	if err != nil {
		conn.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	defer out.Close()
	conn.Write([]byte{5, 0, 0, 1, 192, 0, 2, 1, 0, 25})
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(out, br); out.(*net.TCPConn).CloseWrite() })
	io.Copy(conn, out)
	conn.Close()
	wg.Wait()
}

// Mail through a SOCKS5 proxy, with and without a login, to both families: the proxy is asked for the address that was
// checked, and kept connections work as without it.
func TestSOCKS5(t *testing.T) {
	for _, tt := range []struct {
		name         string
		user         string // of the proxy
		addr         string
		source, from string // addresses
	}{
		{"no login", "", "192.0.2.1", "", ""},
		{"login", "ann:secret", "192.0.2.1", "", ""},
		{"a login that nobody asks for", "", "192.0.2.1", "", ""},
		{"IPv6", "", "2001:db8::25", "", ""},
		{"a source's own proxy", "", "192.0.2.1", "198.51.100.7", "::ffff:198.51.100.7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newTaker(t)
			s := newSOCKS(t, &socksServer{target: d.l.Addr().String(), user: tt.user})
			n := newNetwork(t)
			n.mx("dest.example", tt.addr)
			if netip.MustParseAddr(tt.addr).Is6() {
				n.zone["mx1.dest.example AAAA"] = tt.addr
				delete(n.zone, "mx1.dest.example A")
			}
			r := n.relay()
			r.IdleTimeout = time.Minute
			p := &SOCKS5{Addr: s.l.Addr().String(), User: "ann", Password: "secret"}
			r.Dial = p.Dial
			if tt.source != "" {
				p.From = netip.MustParseAddr(tt.from)
				r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
					return []Grant{{Source: Source{Addr: netip.MustParseAddr(tt.source)}, Recipients: req.Recipients}}, nil
				})
			}
			if tt.name == "no login" {
				p.User, p.Password = "", ""
			}
			for range 3 {
				bob(t, r, "")
			}
			want := netip.AddrPortFrom(netip.MustParseAddr(tt.addr), 25).String()
			if len(s.asked) != 1 || s.asked[0] != want || d.conns.Load() != 1 {
				t.Errorf("the proxy was asked for %v, want %s once; %d connections came through", s.asked, want, d.conns.Load())
			}
			r.CloseIdle()
		})
	}
}

// What a proxy may do wrong, and what it says about the target. No error, log or text has the password.
func TestSOCKS5Errors(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, tt := range []struct {
		name   string
		server *socksServer // nil: nobody is there
		edit   func(*SOCKS5)
		want   error  // nil: a ProxyError
		text   string // in the status
	}{
		{"nobody", nil, nil, nil, "way out"},
		{"no such login", &socksServer{user: "ann:other"}, nil, nil, "way out"},
		{"login is demanded", &socksServer{user: "ann:secret"}, func(s *SOCKS5) { s.User = "" }, nil, "way out"},
		{"general failure", &socksServer{reply: 1}, nil, nil, "way out"},
		{"not allowed", &socksServer{reply: 2}, nil, nil, "way out"},
		{"network unreachable", &socksServer{reply: 3}, nil, syscall.ENETUNREACH, "no route"},
		{"host unreachable", &socksServer{reply: 4}, nil, syscall.EHOSTUNREACH, "no route"},
		{"refused", &socksServer{reply: 5}, nil, syscall.ECONNREFUSED, "refused"},
		{"TTL expired", &socksServer{reply: 6}, nil, syscall.ETIMEDOUT, "timed out"},
		{"an unknown code", &socksServer{reply: 99}, nil, nil, "way out"},
		{"garbage", &socksServer{raw: "HTTP/1.1 400 Bad Request\r\n"}, nil, nil, "way out"},
		{"half a reply", &socksServer{raw: "\x05"}, func(s *SOCKS5) { s.Timeout = 50 * time.Millisecond }, nil, "way out"},
		{"silence", &socksServer{stall: true}, func(s *SOCKS5) { s.Timeout = 50 * time.Millisecond }, nil, "way out"},
		{"another source", &socksServer{}, func(s *SOCKS5) { s.From = netip.MustParseAddr("192.0.2.99") }, nil, "way out"},
		{"a source without a From", &socksServer{}, func(s *SOCKS5) { s.From = netip.Addr{} }, nil, "way out"},
		{"no address", &socksServer{}, func(s *SOCKS5) { s.Addr = "" }, nil, "way out"},
		{"a password that is too long", &socksServer{user: "ann:secret"}, func(s *SOCKS5) { s.Password = strings.Repeat("secret", 50) }, nil, "way out"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &SOCKS5{Addr: closed.Addr().String(), User: "ann", Password: "secret", From: netip.MustParseAddr("198.51.100.7")}
			if tt.server != nil {
				p.Addr = newSOCKS(t, tt.server).l.Addr().String()
			}
			if tt.edit != nil {
				tt.edit(p)
			}
			ctx := context.WithValue(t.Context(), sourceKey{}, Source{Addr: netip.MustParseAddr("198.51.100.7")})
			conn, err := p.Dial(ctx, "tcp", "192.0.2.1:25")
			if err == nil {
				conn.Close()
				t.Fatal("connected")
			}
			var pe *ProxyError
			if isProxy := errors.As(err, &pe); isProxy != (tt.want == nil) || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v", err)
			}
			if strings.Contains(fmt.Sprintf("%v %+v %#v %v %#v", err, err, err, *p, p), "secret") {
				t.Errorf("the password is in %#v or %#v", err, p)
			}
			n := newNetwork(t)
			n.mx("dest.example", "192.0.2.1")
			var log bytes.Buffer
			r := n.relay()
			r.Dial, r.Logger = p.Dial, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
				return []Grant{{Source: Source{Addr: netip.MustParseAddr("198.51.100.7")}, Recipients: req.Recipients}}, nil
			})
			derr := mailspine.ErrorAt(r.Deliver(t.Context(), envelope(t, "ann@sender.example", "bob@dest.example"), mailspine.StringContent("x\r\n")), 0)
			wantStatus(t, tt.name, derr, "451 4.4.1")
			if text := mailspine.Status(derr).Message; !strings.Contains(text, tt.text) || strings.Contains(text, "127.0.0.1") {
				t.Errorf("the text is %q", text)
			}
			if strings.Contains(log.String(), "secret") || !strings.Contains(log.String(), "mta: ") {
				t.Errorf("the log is %s", &log)
			}
		})
	}
	// The end of ctx is the end of a proxy that says nothing.
	s := newSOCKS(t, &socksServer{stall: true})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := (&SOCKS5{Addr: s.l.Addr().String()}).Dial(ctx, "tcp", "192.0.2.1:25"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// The guard looks at the mail exchanger's address before a proxy is asked for it, and not at the proxy's.
func TestProxyGuard(t *testing.T) {
	s := newSOCKS(t, &socksServer{target: newTaker(t).l.Addr().String()})
	for _, dial := range []func(context.Context, string, string) (net.Conn, error){
		(&SOCKS5{Addr: s.l.Addr().String()}).Dial,
		(&PROXYProtocol{Addr: s.l.Addr().String(), From: []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")}}).Dial,
	} {
		for _, a := range []string{"127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fe80::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"} {
			n := newNetwork(t)
			n.mx("dest.example", "192.0.2.1")
			n.zone["mx1.dest.example A"] = a
			r := n.relay()
			r.AllowPrivate, r.Dial = nil, dial
			bob(t, r, "550 5.4.4")
		}
	}
	if len(s.asked) != 0 {
		t.Errorf("the proxy was asked for %v", s.asked)
	}
}

// A haproxy reads PROXY headers, and connects everything to target.
type haproxy struct {
	l     net.Listener
	wg    sync.WaitGroup
	conns atomic.Int64

	mu   sync.Mutex
	seen []string // source and destination
}

func newHAProxy(t *testing.T, target string) *haproxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &haproxy{l: &proxyproto.Listener{Listener: l, ReadHeaderTimeout: 10 * time.Second}}
	h.wg.Go(func() {
		for {
			conn, err := h.l.Accept()
			if err != nil {
				return
			}
			h.conns.Add(1)
			h.wg.Go(func() {
				defer conn.Close()
				header := conn.(*proxyproto.Conn).ProxyHeader()
				if header == nil || header.Version != 2 || header.Command != proxyproto.PROXY {
					t.Errorf("the header is %+v", header)
					return
				}
				h.mu.Lock()
				h.seen = append(h.seen, fmt.Sprint(header.SourceAddr, " to ", header.DestinationAddr))
				h.mu.Unlock()
				out, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer out.Close()
				var wg sync.WaitGroup
				wg.Go(func() { io.Copy(out, conn); out.(*net.TCPConn).CloseWrite() })
				io.Copy(conn, out)
				conn.Close()
				wg.Wait()
			})
		}
	})
	t.Cleanup(func() { l.Close(); h.wg.Wait() })
	return h
}

// Mail through a TCP proxy that is told source and destination: those of the Egress, or of From.
func TestPROXYProtocol(t *testing.T) {
	for _, tt := range []struct {
		name   string
		source string
		from   []string
		addr   string
		want   string // "": 451 4.4.1
	}{
		{"of the source", "198.51.100.7", []string{"198.51.100.8"}, "192.0.2.1", "198.51.100.7:0 to 192.0.2.1:25"},
		{"of the source, IPv6", "2001:db8::7", nil, "2001:db8::25", "[2001:db8::7]:0 to [2001:db8::25]:25"},
		{"of From", "", []string{"2001:db8::8", "198.51.100.8"}, "192.0.2.1", "198.51.100.8:0 to 192.0.2.1:25"},
		{"of From, IPv6", "", []string{"198.51.100.8", "2001:db8::8"}, "2001:db8::25", "[2001:db8::8]:0 to [2001:db8::25]:25"},
		{"no address", "", nil, "192.0.2.1", ""},
		{"none of the family", "", []string{"2001:db8::8"}, "192.0.2.1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newTaker(t)
			h := newHAProxy(t, d.l.Addr().String())
			n := newNetwork(t)
			n.mx("dest.example", tt.addr)
			if netip.MustParseAddr(tt.addr).Is6() {
				n.zone["mx1.dest.example AAAA"] = tt.addr
				delete(n.zone, "mx1.dest.example A")
			}
			r := n.relay()
			p := &PROXYProtocol{Addr: h.l.Addr().String()}
			for _, f := range tt.from {
				p.From = append(p.From, netip.MustParseAddr(f))
			}
			r.Dial, r.IdleTimeout = p.Dial, time.Minute
			if tt.source != "" {
				r.Egress = EgressFunc(func(_ context.Context, req EgressRequest) ([]Grant, error) {
					return []Grant{{Source: Source{Addr: netip.MustParseAddr(tt.source)}, Recipients: req.Recipients}}, nil
				})
			}
			if tt.want == "" {
				bob(t, r, "451 4.4.1")
				if h.conns.Load() != 0 {
					t.Error("the proxy was connected to")
				}
				return
			}
			bob(t, r, "")
			bob(t, r, "")
			if len(h.seen) != 1 || h.seen[0] != tt.want {
				t.Errorf("the proxy was told %q, want %q once", h.seen, tt.want)
			}
			r.CloseIdle()
		})
	}
	// What is wrong with it is its own fault.
	for _, a := range []string{"192.0.2.1", "mx.example:25", ""} {
		var pe *ProxyError
		if _, err := (&PROXYProtocol{Addr: "127.0.0.1:1"}).Dial(t.Context(), "tcp", a); !errors.As(err, &pe) {
			t.Errorf("%q: %v", a, err)
		}
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	p := &PROXYProtocol{Addr: closed.Addr().String(), From: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}
	var pe *ProxyError
	if _, err := p.Dial(t.Context(), "tcp", "192.0.2.1:25"); !errors.As(err, &pe) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody there: %v", err)
	}
}

// FuzzSOCKS5 lets a proxy say anything: it is an error, or a connection, in time, and never a panic.
func FuzzSOCKS5(f *testing.F) {
	for _, s := range []string{
		"", "\x05", "\x05\x00", "\x05\x02\x01\x00\x05\x00\x00\x01\x01\x02\x03\x04\x00\x19", "\x05\x00\x05\x00\x00\x01\x01\x02\x03\x04\x00\x19220 hi\r\n",
		"\x05\x00\x05\x00\x00\x03\x04host\x00\x19", "\x05\x00\x05\x00\x00\x04", "\x05\xff", "\x04\x00", "\x05\x00\x05\x05\x00\x01", "\x05\x00\x05\x00\x00\x03\xff", "\x05\x02\x01\x01",
	} {
		f.Add([]byte(s))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	p := &SOCKS5{Addr: l.Addr().String(), User: "ann", Password: "secret", Timeout: 5 * time.Second}
	f.Fuzz(func(t *testing.T, said []byte) {
		var wg sync.WaitGroup
		wg.Go(func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write(said)
			conn.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, conn)
			conn.Close()
		})
		conn, err := p.Dial(t.Context(), "tcp", "192.0.2.1:25")
		if err == nil {
			// What the proxy said after its reply is the server's.
			if rest, _ := io.ReadAll(conn); !bytes.HasSuffix(said, rest) {
				t.Errorf("of %q the server said %q", said, rest)
			}
			conn.Close()
		} else if conn != nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v with %v", conn, err)
		}
		wg.Wait()
	})
}
