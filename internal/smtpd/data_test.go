package smtpd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
)

// An idealMessage is what DATA's input means, found octet by octet.
type idealMessage struct {
	content []byte
	rest    []byte // what is behind the end
	ended   bool
	bare    bool // a CR or an LF stands alone
	nul     bool
	long    bool // a line is
}

func ideal(in []byte, maxLine int) (m idealMessage) {
	line, begin, cr := 0, true, false
	for i := 0; i < len(in); i++ {
		if begin && in[i] == '.' {
			if bytes.HasPrefix(in[i:], []byte(".\r\n")) {
				m.rest, m.ended = in[i+3:], true
				return m
			}
			begin = false
			continue
		}
		c := in[i]
		m.content = append(m.content, c)
		line++
		m.long = m.long || line > maxLine
		m.nul = m.nul || c == 0
		if c == '\n' && !cr || cr && c != '\n' {
			m.bare = true
		}
		begin = c == '\n' && cr
		if begin {
			line = 0
		}
		cr = c == '\r'
	}
	return m
}

// A dribble is a connection whose client sends pieces of the given sizes, over and over.
type dribble struct {
	net.Conn
	in    []byte
	sizes []int
	n     int
}

func (d *dribble) Read(p []byte) (int, error) {
	if len(d.in) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), len(d.in), max(1, d.sizes[d.n%len(d.sizes)]))
	d.n++
	copy(p, d.in[:n])
	d.in = d.in[n:]
	return n, nil
}

func (d *dribble) SetReadDeadline(time.Time) error { return nil }

// checkData reads a message in pieces, and compares it with the ideal one.
func checkData(t *testing.T, in []byte, sizes []int, read int) {
	t.Helper()
	const maxLine = 100
	want := ideal(in, maxLine)
	s := &Server{Limits: Limits{MaxLine: maxLine}}
	s.init()
	c := &Conn{server: s}
	d := &dribble{in: in, sizes: sizes}
	c.raw = d
	c.attach(d)
	defer c.detach()
	c.inData = true
	m := c.dataMessage()
	var got []byte
	var err error
	for p := make([]byte, read); err == nil; {
		var n int
		if n, err = m.Read(p); n == 0 && err == nil {
			t.Fatalf("Read returned nothing, and no error")
		}
		got = append(got, p[:n]...)
	}
	m.drain()
	if m.ended != want.ended || m.ended == (m.failed != nil) {
		t.Fatalf("ended is %v (%v), want %v", m.ended, m.failed, want.ended)
	}
	sound := !want.bare && !want.nul && !want.long
	switch {
	case !want.ended:
		if !want.bare && m.bare {
			t.Fatalf("a bare line end was found where none is")
		}
		return
	case sound && (err != io.EOF || !m.whole || !bytes.Equal(got, want.content)):
		t.Fatalf("read %q, %v; want %q", got, err, want.content)
	case !sound && (err == io.EOF || m.whole || m.verdict == nil):
		t.Fatalf("taken: %q, %v", got, m.verdict)
	case !bytes.HasPrefix(want.content, got):
		t.Fatalf("read %q of %q", got, want.content)
	case m.bare != want.bare:
		t.Fatalf("bare is %v, want %v", m.bare, want.bare)
	}
	if m.raw != int64(len(in)-len(want.rest)) {
		t.Fatalf("counted %d octets, of %d", m.raw, len(in)-len(want.rest))
	}
	// What is behind the message is there yet, whichever buffer it is in.
	c.inData = false
	rest, _ := io.ReadAll(c.br)
	c.narrowAgain()
	more, _ := io.ReadAll(c.br)
	if rest = append(rest, more...); !bytes.Equal(rest, want.rest) {
		t.Fatalf("behind the message is %q, want %q", rest, want.rest)
	}
}

// However a message is cut into pieces, and whatever follows it, it is the same message.
func TestDataInPieces(t *testing.T) {
	bits := []string{"\r\n", "\r\n", "\r\n.", ".", "..", "\r\n.\r\n", "\r", "\n", "a", "text", strings.Repeat("x", 90), "\x00", ".\r\n", "\n.\n", "\r.\r", "é"}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		// Mostly sound: the unusual bits are rare in most messages.
		usual := []int{7, len(bits)}[rnd.IntN(2)]
		var in []byte
		for range rnd.IntN(30) {
			if usual == 7 {
				in = append(in, []string{"\r\n", "\r\n", "\r\n.", "a", "..", "text", strings.Repeat("x", 90)}[rnd.IntN(7)]...)
			} else {
				in = append(in, bits[rnd.IntN(len(bits))]...)
			}
		}
		in = append(in, "\r\n.\r\n"...)
		in = append(in, []string{"", "MAIL FROM:<>\r\n", ".", "\r\n.\r\n"}[rnd.IntN(4)]...)
		sizes := []int{1 + rnd.IntN(5), 1 + rnd.IntN(100), 1 + rnd.IntN(10_000)}
		sizes = sizes[rnd.IntN(3):]
		checkData(t, in, sizes, 1+rnd.IntN(200))
		if t.Failed() {
			t.Fatalf("the input was %q in pieces of %v", in, sizes)
		}
	}
}

// Around the ends of both buffers, too.
func TestDataAtBufferEnds(t *testing.T) {
	for _, size := range []int{readBuffer, dataBuffer} {
		for _, bit := range []string{"\r\n", "\r\n..", "\r\n.\r\n", "\r\n.a\r\n", ".\r\n", "\r", "\n", "\r\n\r\n.\r\n"} {
			for off := -6; off <= 2; off++ {
				line := strings.Repeat("y", 62) + "\r\n"
				in := []byte(strings.Repeat(line, size/len(line)+1)[:size+off])
				if i := bytes.LastIndex(in, []byte("\r\n")); len(in)-i > 2 && in[len(in)-1] == '\r' {
					in[len(in)-1] = 'y'
				}
				in = append(in, bit+"tail\r\n.\r\nQUIT\r\n"...)
				for _, sizes := range [][]int{{1 << 20}, {size}, {size - 1}, {size + off, 1}, {1000, 1, 3}} {
					for _, read := range []int{1 << 16, 4096, 7} {
						checkData(t, in, sizes, read)
						if t.Failed() {
							t.Fatalf("%q at %d%+d in pieces of %v", bit, size, off, sizes)
						}
					}
				}
			}
		}
	}
}

func FuzzData(f *testing.F) {
	for _, s := range []string{"\r\n.\r\n", ".\r\n", "a\r\n..\r\n.\r\nQUIT\r\n", "a\n.\n\r\n.\r\n", "a\r.\r\n.\r\n", ".", ".\r", "\r\n.", "a\x00\r\n.\r\n", "\r\n.\r.\r\n"} {
		f.Add([]byte(s), uint16(1), uint16(3), uint16(7))
		f.Add([]byte(s), uint16(100), uint16(1), uint16(100))
	}
	f.Fuzz(func(t *testing.T, in []byte, a, b, read uint16) {
		checkData(t, in, []int{int(a), int(b)}, 1+int(read))
	})
}

// sound is a short way, not another one.
func TestTextCheckShortWay(t *testing.T) {
	bits := []string{"\r\n", "\r\n", "\r", "\n", "a", "\x00", "ten octets", "é"}
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 30_000 {
		short := textCheck{maxLine: 20, maxSize: 60}
		long := short
		var all []byte
		for range 1 + rnd.IntN(3) {
			var p []byte
			for range rnd.IntN(12) {
				p = append(p, bits[rnd.IntN(len(bits)-rnd.IntN(7))]...)
			}
			all = append(all, p...)
			short.scan(p)
			for line := range bytes.Lines(p) { // as scan does where sound says no
				if !long.bare {
					long.scanLine(line)
				}
			}
			a, b := short, long
			a.bad, b.bad = nil, nil
			if a != b || fmt.Sprint(short.bad) != fmt.Sprint(long.bad) {
				t.Fatalf("%q: %+v and %+v", all, short, long)
			}
		}
	}
}

// A session that keeps the reader cannot read what is sent after its message.
func TestReaderIsGoneAfterData(t *testing.T) {
	var kept io.Reader
	sess := &keeper{keep: func(r io.Reader) { kept = r }}
	s := &Server{Handler: HandlerFunc(func(context.Context, *Conn) (Session, error) { return sess, nil }), Hostname: "mx.example"}
	client, server := net.Pipe()
	s.init()
	c := newConn(s, server, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.serve()
	}()
	go io.WriteString(client, "EHLO a\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\na\r\n.\r\nNOOP\r\nQUIT\r\n")
	out, _ := io.ReadAll(client)
	<-done
	if n := strings.Count(string(out), "\r\n250 2.0.0"); n != 2 {
		t.Errorf("the conversation: %s", out)
	}
	if n, err := kept.Read(make([]byte, 10)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("read %d octets, %v", n, err)
	}
}

type keeper struct{ keep func(io.Reader) }

func (k *keeper) Mail(context.Context, *Transaction) error { return nil }
func (k *keeper) Rcpt(context.Context, *Transaction, *mailspine.Recipient) error {
	return nil
}
func (k *keeper) Data(_ context.Context, _ *Transaction, r io.Reader) (string, error) {
	k.keep(r)
	_, err := io.Copy(io.Discard, r)
	return "", err
}
func (k *keeper) Reset() {}
func (k *keeper) Close() {}

// The replies that are built by hand are what they would be in words.
func TestReplyLines(t *testing.T) {
	s := &Server{}
	s.init()
	var out bytes.Buffer
	c := &Conn{server: s}
	d := &writer{w: &out}
	c.raw = d
	c.attach(d)
	defer c.detach()
	long := strings.Repeat("x", 600)
	for _, r := range []struct {
		enhanced string
		lines    []string
		want     string
	}{
		{"", nil, "250 \r\n"},
		{"", []string{""}, "250 \r\n"},
		{"2.0.0", []string{"Ok"}, "250 2.0.0 Ok\r\n"},
		{"2.0.0", []string{"a", "b"}, "250-2.0.0 a\r\n250 2.0.0 b\r\n"},
		{"", []string{"a\r\n250 b\x7fé"}, "250 a??250 b??\r\n"},
		{"", []string{long, "y"}, "250-" + long[:506] + "\r\n250-" + long[506:] + "\r\n250 y\r\n"},
		{"5.7.1", []string{long}, "250-5.7.1 " + long[:500] + "\r\n250 5.7.1 " + long[500:] + "\r\n"},
	} {
		out.Reset()
		c.reply(250, r.enhanced, r.lines...)
		c.flush()
		if out.String() != r.want {
			t.Errorf("%q %q:\n%q, want\n%q", r.enhanced, r.lines, out.String(), r.want)
		}
	}
	for _, lines := range [][]string{slices.Repeat([]string{"z"}, 300), {strings.Repeat("z", 200_000)}} {
		out.Reset()
		c.reply(250, "", lines...)
		c.flush()
		got := strings.SplitAfter(out.String(), "\r\n")
		if len(got) != 101 || !strings.HasPrefix(got[98], "250-") || !strings.HasPrefix(got[99], "250 ") {
			t.Errorf("%d lines, the last %q", len(got)-1, got[len(got)-2])
		}
	}
}

type writer struct {
	net.Conn
	w io.Writer
}

func (w *writer) Write(p []byte) (int, error)      { return w.w.Write(p) }
func (w *writer) SetWriteDeadline(time.Time) error { return nil }

// Eight octets at a time miss none.
func TestASCII(t *testing.T) {
	for n := range 100 {
		p := bytes.Repeat([]byte{0x7f}, n)
		if !ascii(p) {
			t.Fatalf("%d octets of ASCII are none", n)
		}
		for i := range p {
			p[i] = 0x80
			if ascii(p) {
				t.Fatalf("octet %d of %d is missed", i, n)
			}
			p[i] = 0
		}
	}
}
