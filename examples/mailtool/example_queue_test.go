package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/filequeue"
)

// The spool of a queue that is not running: what is in it. And a command that would go too far.
func Example_queue() {
	dir, err := os.MkdirTemp("", "spool")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	quiet := slog.New(slog.DiscardHandler)
	store, err := filequeue.Open(dir, &filequeue.Options{Logger: quiet})
	if err != nil {
		fmt.Println(err)
		return
	}
	q := &queue.Queue{Store: store, Logger: quiet}
	for _, domain := range []string{"example.com", "example.net", "example.net"} {
		env := &mailspine.Envelope{
			From:       mailspine.Address{Local: "ann", Domain: "example.org"},
			Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "bob", Domain: domain}}},
		}
		if err := q.Deliver(context.Background(), env, mailspine.StringContent("Subject: hello\r\n\r\n")); err != nil {
			fmt.Println(err)
		}
	}
	store.Close()

	mailtool := func(args ...string) {
		code := run(context.Background(), append([]string{"queue"}, args...), os.Stdout, os.Stdout)
		fmt.Println("exit code", code)
	}
	mailtool("stats", "-spool", dir)
	mailtool("delete", "-spool", dir)
	// Output:
	// Messages   3 with 54 octets
	// Items      3: 3 due, 0 waiting, 0 being delivered, 0 held
	// Server     not running
	// Health     ok
	//
	// ROUTE                              ITEMS       DUE   WAITING    LEASED      HELD
	// example.net                            2         2         0         0         0
	// example.com                            1         1         0         0         0
	//
	// TENANT                             ITEMS       DUE   WAITING    LEASED      HELD
	// -                                      3         3         0         0         0
	// exit code 0
	// mailtool queue delete: without a filter nothing is selected; -all selects everything, -h lists the filters
	// exit code 2
}
