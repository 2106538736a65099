package mda_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

// An Agent behind a queue or a server: here it is called directly.
func ExampleAgent() {
	ctx := context.Background()
	store := memory.New(nil)
	defer store.Close()
	users, err := mda.Users("ann@example.org", "bob@example.org")
	if err != nil {
		panic(err)
	}
	agent := &mda.Agent{Mailboxes: store, Directory: users, Separator: "+"}

	env := &mailspine.Envelope{
		ID:   mailspine.NewMsgID(),
		From: mailspine.Address{Local: "joe", Domain: "example.com"},
		Recipients: []mailspine.Recipient{
			{Address: mailspine.Address{Local: "Ann+news", Domain: "example.org"}},
			{Address: mailspine.Address{Local: "eve", Domain: "example.org"}},
		},
	}
	err = agent.Deliver(ctx, env, mailspine.StringContent("Subject: hello\r\n\r\nHello.\r\n"))
	fmt.Println(err)

	acct, _ := store.Account(ctx, "ann@example.org")
	inbox, _ := acct.Open(ctx, mailbox.Inbox)
	snap, _ := inbox.Snapshot(ctx)
	for _, m := range snap.Messages {
		body, err := inbox.Body(ctx, m.UID)
		if err != nil {
			panic(err)
		}
		text := make([]byte, body.Size())
		body.ReadAt(text, 0)
		body.Close()
		fmt.Print(strings.ReplaceAll(string(text), "\r\n", "\n"))
	}
	// Output:
	// recipient 1: 550 5.1.1 No such user here: mda: no such user
	// Return-Path: <joe@example.com>
	// Delivered-To: Ann+news@example.org
	// Subject: hello
	//
	// Hello.
}
