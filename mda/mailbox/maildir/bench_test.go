package maildir

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// Deliveries of 10 KB, each durable when it counts. accounts=1 shows how far the syncs of the
// log are shared, accounts=50 that accounts do not wait for each other.
func BenchmarkDeliver(b *testing.B) {
	msg := mailspine.StringContent("Subject: x\r\n\r\n" + strings.Repeat("0123456789abcde\r\n", 600))
	for _, c := range []struct{ writers, accounts int }{{1, 1}, {50, 1}, {50, 50}} {
		b.Run(fmt.Sprintf("writers=%d/accounts=%d", c.writers, c.accounts), func(b *testing.B) {
			store, err := Open(b.TempDir(), nil)
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			accts := make([]mailbox.Account, c.accounts)
			for i := range accts {
				if accts[i], err = store.Account(b.Context(), fmt.Sprint("user", i)); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(msg.Size())
			b.SetParallelism((c.writers + 1) / 2) // of two processors
			var n atomic.Int64
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				a := accts[int(n.Add(1))%len(accts)]
				for pb.Next() {
					if _, err := a.Deliver(b.Context(), msg, mailbox.DeliverOptions{}); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
