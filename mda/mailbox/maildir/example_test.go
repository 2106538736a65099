package maildir_test

import (
	"context"
	"fmt"
	"os"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/maildir"
)

// A message that was delivered is there when the store is opened the next time,
// with its UID.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "maildir")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)

	store, err := maildir.Open(dir, nil)
	if err != nil {
		panic(err)
	}
	acct, _ := store.Account(ctx, "ann@example.org")
	msg := mailspine.StringContent("Subject: hello\r\n\r\nHello.\r\n")
	first, err := acct.Deliver(ctx, msg, mailbox.DeliverOptions{ID: "message 1"})
	if err != nil {
		panic(err)
	}
	store.Close()

	store, err = maildir.Open(dir, nil)
	if err != nil {
		panic(err)
	}
	defer store.Close()
	acct, _ = store.Account(ctx, "ann@example.org")
	inbox, _ := acct.Open(ctx, mailbox.Inbox)
	snap, _ := inbox.Snapshot(ctx)
	fmt.Println(len(snap.Messages), "message, UID", snap.Messages[0].UID)
	fmt.Println("the same as before:", snap.Info.UIDValidity == first.Copies[0].UIDValidity)

	// A queue that does not know whether it delivered repeats it.
	again, err := acct.Deliver(ctx, msg, mailbox.DeliverOptions{ID: "message 1"})
	if err != nil {
		panic(err)
	}
	fmt.Println("repeated:", again.Copies[0].Repeated)
	// Output:
	// 1 message, UID 1
	// the same as before: true
	// repeated: true
}
