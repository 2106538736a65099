package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to accept on")
	to := flag.String("to", "", "address to connect to")
	delay := flag.Duration("delay", 25*time.Millisecond, "time that an octet takes, one way")
	limit := flag.Duration("limit", 10*time.Minute, "end after this long")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	l, err := net.Listen("tcp", *listen)
	if err == nil {
		err = serve(ctx, l, func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", *to)
		}, *delay, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "delay:", err)
		os.Exit(1)
	}
}

// serve carries connections until ctx is done, and then prints the counts.
func serve(ctx context.Context, l net.Listener, dial func(context.Context) (net.Conn, error), delay time.Duration, out *os.File) error {
	context.AfterFunc(ctx, func() { l.Close() })
	var c counts
	var wg sync.WaitGroup
	for {
		client, err := l.Accept()
		if err != nil {
			wg.Wait()
			if ctx.Err() == nil {
				return err
			}
			return json.NewEncoder(out).Encode(c.report())
		}
		c.conns.Add(1)
		wg.Go(func() {
			if err := carry(ctx, client, dial, delay, &c); err != nil {
				fmt.Fprintln(os.Stderr, "delay:", err)
			}
		})
	}
}
