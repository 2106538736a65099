package memory_test

import (
	"context"
	"fmt"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

// Deliver a message, watch it arrive, flag it, and see what changed.
func Example() {
	ctx := context.Background()
	store := memory.New(nil)
	defer store.Close()
	acct, err := store.Account(ctx, "ann@example.org")
	if err != nil {
		panic(err)
	}
	watcher, err := acct.Watch(ctx)
	if err != nil {
		panic(err)
	}
	defer watcher.Close()

	msg := mailspine.StringContent("Subject: hello\r\n\r\nHello.\r\n")
	if _, err := acct.Deliver(ctx, msg, mailbox.DeliverOptions{Mailboxes: []string{"INBOX", "Lists/go"}, Create: true}); err != nil {
		panic(err)
	}
	events, _ := watcher.Next(ctx)
	fmt.Println(len(events), "mailboxes changed")

	inbox, _ := acct.Open(ctx, mailbox.Inbox)
	snap, _ := inbox.Snapshot(ctx)
	uid := snap.Messages[0].UID
	inbox.SetFlags(ctx, []mailbox.UID{uid}, mailbox.FlagChange{Flags: []mailbox.Flag{mailbox.Seen, "Work"}})

	changes, _ := inbox.Changes(ctx, snap.Info.ModSeq)
	for _, m := range changes.Changed {
		fmt.Println("message", m.UID, "has", m.Flags, "and", m.Size, "octets")
	}
	list, _ := acct.Mailboxes(ctx)
	for _, i := range list {
		fmt.Println(i.Name, i.Messages, "messages,", i.Unseen, "unseen")
	}
	// Output:
	// 3 mailboxes changed
	// message 1 has [\Seen work] and 26 octets
	// INBOX 1 messages, 0 unseen
	// Lists 0 messages, 0 unseen
	// Lists/go 1 messages, 1 unseen
}
