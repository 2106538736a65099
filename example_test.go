package mailspine_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/smtp"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
	"github.com/mailspine/mailspine/mta"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/memqueue"
)

// A mail system in memory: a receiver, a queue, a router, and mailboxes, each a
// Deliverer with the next one behind it. With filequeue, maildir, an
// auth.Checker and an mta.Relay as the Mux's Default it is a real one; see
// examples/pipeline.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	quiet := slog.New(slog.DiscardHandler)

	// From the reader's end to the sender's.
	mailboxes := memory.New(nil)
	users, _ := mda.Users("ann@example.net")
	agent := &mda.Agent{Mailboxes: mailboxes, Directory: users, Logger: quiet}
	mux := &mta.Mux{Routes: map[string]mailspine.Deliverer{"example.net": agent}}
	mail := &queue.Queue{Store: memqueue.New(nil), Next: mux, Router: mux, Logger: quiet}
	receiver := &mta.Receiver{Hostname: "mx.example.net", Recipients: mux, Next: mail, Logger: quiet}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go receiver.Serve(l)
	defer receiver.Close()
	go mail.Run(ctx)

	// The reader watches her mailbox.
	account, _ := mailboxes.Account(ctx, "ann@example.net")
	watcher, _ := account.Watch(ctx)
	defer watcher.Close()

	// Somebody writes to her, and to somebody who is not there.
	for _, to := range []string{"ann@example.net", "bob@example.net"} {
		err := smtp.SendMail(l.Addr().String(), nil, "joe@example.org", []string{to},
			[]byte("From: joe@example.org\r\nSubject: Hello\r\n\r\nThrough the whole pipeline.\r\n"))
		fmt.Println(to, "accepted:", err == nil)
	}

	watcher.Next(ctx)
	inbox, _ := account.Open(ctx, "INBOX")
	snapshot, _ := inbox.Snapshot(ctx)
	for _, m := range snapshot.Messages {
		body, _ := inbox.Body(ctx, m.UID)
		h, _ := mailspine.ParseHeader(io.NewSectionReader(body, 0, m.Size), 0)
		fmt.Println("in the mailbox:", h.Get("Return-Path"), h.Get("Subject"))
		body.Close()
	}
	// Output:
	// ann@example.net accepted: true
	// bob@example.net accepted: false
	// in the mailbox: <joe@example.org> Hello
}
