package mta_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta"
)

// How do many messages to one host share a connection? They do so by themselves, as long as each comes soon after
// the one before; MAIL, RCPT and the message go together.
func ExampleRelay_CloseIdle() {
	quiet := slog.New(slog.DiscardHandler)
	receiver := &mta.Receiver{
		Hostname:   "mx.example.org",
		Recipients: mailspine.RecipientCheckerFunc(func(context.Context, *mailspine.Envelope, mailspine.Recipient) error { return nil }),
		Next:       mailspine.DelivererFunc(func(context.Context, *mailspine.Envelope, mailspine.Content) error { return nil }),
		Logger:     quiet,
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	served := make(chan error)
	go func() { served <- receiver.Serve(l) }()

	relay := &mta.Relay{
		Hostname: "out.example.com",
		Logger:   quiet,
		Trace: &mta.RelayTrace{
			Dialed: func(context.Context, mta.DialedInfo) { fmt.Println("a new connection") },
			Reused: func(_ context.Context, i mta.ReusedInfo) {
				fmt.Println("the same connection, after", i.Messages, "messages")
			},
			Wire: func(_ context.Context, l mta.WireLine) {
				if l.Sent {
					fmt.Println("\t" + l.Line)
				}
			},
		},
	}
	host := &mta.Smarthost{Relay: relay, Address: l.Addr().String()}
	env := &mailspine.Envelope{
		From:       mailspine.Address{Local: "ann", Domain: "example.com"},
		Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "bob", Domain: "example.org"}}},
	}
	for range 2 {
		if err := host.Deliver(context.Background(), env, mailspine.StringContent("Subject: hello\r\n\r\nHello Bob\r\n")); err != nil {
			fmt.Println(err)
		}
	}
	relay.CloseIdle() // at the end; otherwise it ends after IdleTimeout

	if err := receiver.Shutdown(context.Background()); err != nil {
		fmt.Println(err)
	}
	fmt.Println("served:", <-served)
	// Output:
	// a new connection
	// 	EHLO out.example.com
	// 	MAIL FROM:<ann@example.com> SIZE=29
	// 	RCPT TO:<bob@example.org>
	// 	BDAT 29 LAST
	// 	(29 octets of message)
	// the same connection, after 1 messages
	// 	MAIL FROM:<ann@example.com> SIZE=29
	// 	RCPT TO:<bob@example.org>
	// 	BDAT 29 LAST
	// 	(29 octets of message)
	// 	QUIT
	// served: <nil>
}
