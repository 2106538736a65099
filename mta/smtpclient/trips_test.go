package smtpclient

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tripTime is the round trip of a link.
const tripTime = 50 * time.Millisecond

// link connects two ends so that what one sends arrives half a round trip later at the other, however much is under way.
func link(wg *sync.WaitGroup) (a, b net.Conn) {
	a, x := net.Pipe()
	b, y := net.Pipe()
	type piece struct {
		at time.Time
		b  []byte
	}
	one := func(from, to net.Conn) {
		under := make(chan piece, 10_000)
		wg.Go(func() {
			defer close(under)
			buf := make([]byte, 64<<10)
			for {
				n, err := from.Read(buf)
				if n > 0 {
					under <- piece{time.Now().Add(tripTime / 2), bytes.Clone(buf[:n])}
				}
				if err != nil {
					return
				}
			}
		})
		wg.Go(func() {
			defer to.Close()
			for p := range under {
				time.Sleep(time.Until(p.at))
				to.Write(p.b)
			}
		})
	}
	one(x, y)
	one(y, x)
	return a, b
}

// take is a server that takes all mail, with as little work as it can.
func take(conn net.Conn, ext string) {
	defer conn.Close()
	r, w := bufio.NewReaderSize(conn, 64<<10), bufio.NewWriter(conn)
	io.WriteString(conn, "220 hi\r\n")
	data := false
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch {
		case data:
			if data = len(line) != 3 || line[0] != '.'; !data {
				w.WriteString("250 taken\r\n")
			}
		case bytes.HasPrefix(line, []byte("EHLO")):
			w.WriteString("250-hi\r\n" + ext + "250 HELP\r\n")
		case bytes.HasPrefix(line, []byte("DATA")):
			data = true
			w.WriteString("354 go\r\n")
		case bytes.HasPrefix(line, []byte("BDAT")):
			var n int64
			fmt.Sscanf(string(line), "BDAT %d", &n)
			if _, err := io.CopyN(io.Discard, r, n); err != nil {
				return
			}
			w.WriteString("250 taken\r\n")
		case bytes.HasPrefix(line, []byte("QUIT")):
			return
		default:
			w.WriteString("250 ok\r\n")
		}
		if r.Buffered() == 0 {
			w.Flush()
		}
	}
}

const (
	extPipelining = "250-PIPELINING\r\n"
	extChunking   = "250-CHUNKING\r\n"
)

// What a transaction costs on an open connection, as the package's page has it.
func TestRoundTrips(t *testing.T) {
	for _, tt := range []struct {
		ext   string
		rcpts int
		msg   string
		trips int
	}{
		{extPipelining + extChunking, 1, "x\r\n", 1},
		{extPipelining + extChunking, 50, strings.Repeat("x\r\n", InMemory/3), 1},
		{extPipelining + extChunking, 1, large, 2},
		{extPipelining + extChunking, 200, "x\r\n", 2}, // of flights
		{extPipelining, 1, "x\r\n", 2},
		{extPipelining, 50, large, 2},
		{extChunking, 1, "x\r\n", 3},
		{extChunking, 5, "x\r\n", 7},
		{"", 1, "x\r\n", 4},
		{"", 5, large, 8},
	} {
		synctest.Test(t, func(t *testing.T) {
			var wg sync.WaitGroup
			conn, server := link(&wg)
			wg.Go(func() { take(server, tt.ext) })
			c := New(conn, nil)
			begin(t, c)
			var to []string
			for i := range tt.rcpts {
				to = append(to, fmt.Sprintf("%d@dest.example", i))
			}
			tr := &Transaction{Env: envelope(t, "ann@sender.example", to...), Msg: prepare(t, tt.msg)}
			for range 3 {
				start := time.Now()
				res, err := c.Send(t.Context(), tr)
				if err != nil || strings.Count(outcomes(res), "taken") != tt.rcpts {
					t.Fatal(outcomes(res), err)
				}
				if got := time.Since(start); got != time.Duration(tt.trips)*tripTime {
					t.Errorf("%q, %d recipients, %d octets: %v, want %d round trips of %v", tt.ext, tt.rcpts, len(tt.msg), got, tt.trips, tripTime)
				}
			}
			c.Leave()
			wg.Wait()
		})
	}
}

// Messages of 10 KB on one connection over loopback, the work of the server in the same process included.
func BenchmarkSend(b *testing.B) {
	for _, way := range []struct{ name, ext string }{{"chunking", extPipelining + extChunking}, {"pipelining", extPipelining}, {"neither", ""}} {
		b.Run(way.name, func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			go func() {
				if conn, err := l.Accept(); err == nil {
					take(conn, way.ext)
				}
			}()
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			c := New(conn, nil)
			defer c.Close()
			begin(b, c)
			tr := &Transaction{Env: envelope(b, "ann@sender.example", "bob@dest.example"), Msg: prepare(b, strings.Repeat(strings.Repeat("x", 70)+"\r\n", 142))}
			b.SetBytes(tr.Msg.Size())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Send(b.Context(), tr); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
