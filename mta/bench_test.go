package mta

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mailspine/mailspine"
)

// A taker takes all mail and keeps none, with as little work as it can.
type taker struct {
	l     net.Listener
	wg    sync.WaitGroup
	conns atomic.Int64

	greeted bool                 // the greeting was said already
	took    func(message string) // gets the first line of each message; nil: nobody does
	hangUp  int                  // after so many messages; 0: never
	last    string               // said before
	chunks  bool                 // it offers CHUNKING
}

func newTaker(t testing.TB) *taker {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &taker{l: l}
	d.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			d.conns.Add(1)
			d.wg.Go(func() { d.serve(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); d.wg.Wait() })
	return d
}

func (d *taker) serve(conn net.Conn) {
	defer conn.Close()
	r, w := bufio.NewReaderSize(conn, 64<<10), bufio.NewWriter(conn)
	if !d.greeted {
		io.WriteString(conn, "220 sink\r\n")
	}
	data, first, messages := false, "", 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch {
		case data:
			if len(line) != 3 || line[0] != '.' {
				if first == "" && d.took != nil {
					first = string(line)
				}
				continue
			}
			data = false
			if messages++; d.took != nil {
				d.took(first)
				first = ""
			}
			w.WriteString("250 2.0.0 taken\r\n")
			if messages == d.hangUp {
				w.WriteString(d.last)
				w.Flush()
				return
			}
		case bytes.HasPrefix(line, []byte("EHLO")):
			w.WriteString("250-sink\r\n")
			if d.chunks {
				w.WriteString("250-CHUNKING\r\n")
			}
			w.WriteString("250-PIPELINING\r\n250-REQUIRETLS\r\n250-8BITMIME\r\n250 SIZE 10000000\r\n")
		case bytes.HasPrefix(line, []byte("BDAT")):
			var n int64
			fmt.Sscanf(string(line), "BDAT %d", &n)
			if _, err := io.CopyN(io.Discard, r, n); err != nil {
				return
			}
			w.WriteString("250 2.0.0 taken\r\n")
		case bytes.HasPrefix(line, []byte("DATA")):
			data = true
			w.WriteString("354 go\r\n")
		case bytes.HasPrefix(line, []byte("QUIT")):
			w.WriteString("221 bye\r\n")
			w.Flush()
			return
		default:
			w.WriteString("250 2.1.0 ok\r\n")
		}
		if r.Buffered() == 0 {
			w.Flush()
		}
	}
}

// Messages of 10 KB to one host on loopback, one delivery at a time and 20 at once. The server is in the
// same process, so that its work is in the figure too.
func BenchmarkSmarthost(b *testing.B) {
	msg := mailspine.StringContent("Subject: bench\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 142))
	for _, sessions := range []int{1, 20, -1, -20} {
		chunks := sessions < 0
		sessions = max(sessions, -sessions)
		b.Run(fmt.Sprint("sessions=", sessions, ",chunking=", chunks), func(b *testing.B) {
			d := newTaker(b)
			d.chunks = chunks
			s := &Smarthost{Relay: &Relay{Hostname: "out.sender.example", Logger: slog.New(slog.DiscardHandler)}, Address: d.l.Addr().String()}
			env := envelope(b, "ann@sender.example", "bob@dest.example")
			b.ReportAllocs()
			jobs := make(chan struct{})
			var wg sync.WaitGroup
			for range sessions {
				wg.Go(func() {
					for range jobs {
						if err := s.Deliver(b.Context(), env, msg); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for b.Loop() {
				jobs <- struct{}{}
			}
			close(jobs)
			wg.Wait()
		})
	}
}
