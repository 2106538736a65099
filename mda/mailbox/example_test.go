package mailbox_test

import (
	"fmt"

	"github.com/mailspine/mailspine/mda/mailbox"
)

func ExampleCleanName() {
	for _, name := range []string{"inbox/Travel", "cafe\u0301", "a/../b", "a//b"} {
		clean, err := mailbox.CleanName(name)
		fmt.Printf("%q %v\n", clean, err)
	}
	// Output:
	// "INBOX/Travel" <nil>
	// "café" <nil>
	// "" mailbox: bad name: "a/../b": a part of it is "." or ".."
	// "" mailbox: bad name: "a//b": a part of it is empty
}
