package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

const oneWay = 25 * time.Millisecond

// A line is a client and a server with the wire between them.
func line(t *testing.T, c *counts) (client, server net.Conn, done <-chan struct{}) {
	t.Helper()
	client, near := net.Pipe()
	server, far := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		carry(t.Context(), near, func(context.Context) (net.Conn, error) { return far, nil }, oneWay, c)
	}()
	return client, server, ended
}

// Every octet takes its time, and what follows each other closely arrives so: nothing is throttled.
func TestDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c counts
		client, server, done := line(t, &c)
		begun := time.Now()
		at := func(what string, want time.Duration) {
			t.Helper()
			if got := time.Since(begun); got != want {
				t.Errorf("%s after %v, want %v", what, got, want)
			}
		}
		go func() { io.WriteString(server, "hello") }()
		b := make([]byte, 5)
		io.ReadFull(client, b)
		at("the greeting", 3*oneWay+oneWay) // the handshake before it
		go func() {
			for i := range 500 {
				fmt.Fprintf(client, "%03d ", i)
			}
		}()
		b = make([]byte, 4)
		for i := range 500 {
			if io.ReadFull(server, b); string(b) != fmt.Sprintf("%03d ", i) {
				t.Fatalf("%q, want %d", b, i)
			}
		}
		at("500 small writes", 5*oneWay)
		// The end is as late as the octets, and does not overtake them.
		go func() {
			io.WriteString(client, "bye")
			client.Close()
		}()
		rest, err := io.ReadAll(server)
		if string(rest) != "bye" || err != nil {
			t.Errorf("%q, %v", rest, err)
		}
		at("the end", 6*oneWay)
		server.Close()
		<-done
		if r := c.report(); r.ToServer != 2003 || r.ToClient != 5 {
			t.Errorf("%+v", r)
		}
	})
}

// A turn is what a client says after it heard something; a client that goes on talking takes none.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c counts
		client, server, done := line(t, &c)
		go func() {
			b := make([]byte, 1)
			io.WriteString(server, ".")
			for {
				if _, err := io.ReadFull(server, b); err != nil {
					return
				}
				if b[0] == '?' {
					io.WriteString(server, ".")
				}
			}
		}()
		b := make([]byte, 1)
		io.ReadFull(client, b)
		for range 10 {
			io.WriteString(client, "a")
			time.Sleep(time.Millisecond) // in the bubble: a packet of its own
			io.WriteString(client, "b?")
			begun := time.Now()
			io.ReadFull(client, b)
			if d := time.Since(begun); d != 2*oneWay {
				t.Errorf("a round trip takes %v", d)
			}
		}
		client.Close()
		server.Close()
		<-done
		if n := c.turns.Load(); n != 10 {
			t.Errorf("%d turns, want 10", n)
		}
	})
}

// A side that is gone ends the connection, and an end of the program every one.
func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c counts
		client, server, done := line(t, &c)
		time.Sleep(time.Second)
		server.Close()
		io.ReadAll(client)
		client.Close()
		<-done

		ctx, cancel := context.WithCancel(t.Context())
		client, near := net.Pipe()
		go func() {
			time.Sleep(time.Second)
			cancel()
		}()
		carry(ctx, near, func(context.Context) (net.Conn, error) { _, far := net.Pipe(); return far, nil }, oneWay, &c)
		if _, err := client.Read(make([]byte, 1)); err == nil {
			t.Error("the client is still connected")
		}
		carry(ctx, near, func(context.Context) (net.Conn, error) { t.Error("dialed after the end"); return nil, io.EOF }, oneWay, &c)
	})
}

// The whole program over TCP, whose ends are half-closed.
func TestServe(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		conn, err := echo.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn)
		conn.Write(b)
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- serve(ctx, l, func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", echo.Addr().String())
		}, time.Millisecond, w)
		w.Close()
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() {
		conn.Write(sent)
		conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d octets came back, %v", len(got), err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	var rep report
	if err := json.NewDecoder(r).Decode(&rep); err != nil || rep.Connections != 1 || rep.ToServer != 1_000_000 || rep.ToClient != 1_000_000 || rep.Turns < 1 {
		t.Errorf("%+v, %v", rep, err)
	}
}
