package main

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxPacket is how much is read at once, in octets.
	maxPacket = 32 << 10
	// maxOnWire bounds the packets that are under way in one direction; then nothing more is read until one has
	// arrived.
	maxOnWire = 1024
)

// Counts are what was seen of all connections.
type counts struct{ conns, turns, up, down atomic.Int64 }

// A report is the counts as they are printed.
type report struct {
	Connections int64 `json:"connections"`
	Turns       int64 `json:"turns"`
	ToServer    int64 `json:"octets_to_server"`
	ToClient    int64 `json:"octets_to_client"`
}

func (c *counts) report() report {
	return report{Connections: c.conns.Load(), Turns: c.turns.Load(), ToServer: c.up.Load(), ToClient: c.down.Load()}
}

// carry connects a client with a server, until both directions have ended or ctx is done. It closes client.
func carry(ctx context.Context, client net.Conn, dial func(context.Context) (net.Conn, error), delay time.Duration, c *counts) error {
	defer client.Close()
	// The handshake: SYN, SYN and ACK, ACK.
	if err := sleep(ctx, 3*delay); err != nil {
		return nil
	}
	server, err := dial(ctx)
	if err != nil {
		return err
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		server.Close()
	})
	defer stop()

	// A turn is a packet from the client after one that reached it. It is noted that one reaches it just before it does, since the
	// answer could be here before we are told that it did.
	var heard atomic.Bool
	heard.Store(true)
	var wg sync.WaitGroup
	wg.Go(func() {
		pump(ctx, server, client, delay, func(n int) {
			c.up.Add(int64(n))
			if heard.Swap(false) {
				c.turns.Add(1)
			}
		}, func(int) {})
	})
	wg.Go(func() {
		pump(ctx, client, server, delay, func(n int) { c.down.Add(int64(n)) }, func(int) { heard.Store(true) })
	})
	wg.Wait()
	return nil
}

// A packet is what was read at once. Nothing in it is the end of the direction.
type packet struct {
	due time.Time
	b   []byte
}

// pump carries one direction until its end, or until one side is gone. read is called when octets come in, and wrote just before
// they go out.
func pump(ctx context.Context, dst, src net.Conn, delay time.Duration, read, wrote func(n int)) {
	wire := make(chan packet, maxOnWire)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(wire)
		buf := make([]byte, maxPacket)
		for {
			n, err := src.Read(buf)
			due := time.Now().Add(delay)
			if n > 0 {
				read(n)
				wire <- packet{due, append([]byte(nil), buf[:n]...)}
			}
			if err != nil {
				wire <- packet{due: due}
				return
			}
		}
	})
	broken := false
	for p := range wire { // to its end, so that the reader does
		if broken || sleep(ctx, time.Until(p.due)) != nil {
			broken = true
			continue
		}
		if len(p.b) == 0 {
			closeWrite(dst)
			continue
		}
		wrote(len(p.b))
		if _, err := dst.Write(p.b); err != nil {
			broken = true
			src.Close()
		}
	}
}

// closeWrite ends a direction. What is no TCP connection is closed as a whole.
func closeWrite(c net.Conn) {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		w.CloseWrite()
		return
	}
	c.Close()
}

// sleep waits for d, unless ctx is done before.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
