package filequeue

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// each runs f b.N times, from n goroutines.
func each(b *testing.B, n int, f func(i int)) {
	work := make(chan int, b.N)
	for i := range b.N {
		work <- i
	}
	close(work)
	b.ResetTimer()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for i := range work {
				f(i)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkPut is a durable Put of 10 KB. BenchmarkGroupCommit is what the disk
// allows: one goroutine that writes what n others bring, and syncs once for all.
func BenchmarkPut(b *testing.B) {
	for _, n := range []int{1, 5, 20, 50} {
		b.Run(fmt.Sprint(n, "-writers"), func(b *testing.B) {
			s := mustOpen(b, b.TempDir(), &Options{MinFree: -1, Logger: quiet()})
			body := mailspine.BytesContent(make([]byte, 10<<10))
			each(b, n, func(i int) {
				if err := s.Put(ctx, newMessage(mailspine.MsgID(fmt.Sprint("m", i)), "example.net: ann"), body); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

// BenchmarkPutLarge is one of 100 KB, which is a file of its own.
func BenchmarkPutLarge(b *testing.B) {
	for _, n := range []int{1, 10, 50} {
		b.Run(fmt.Sprint(n, "-writers"), func(b *testing.B) {
			s := mustOpen(b, b.TempDir(), &Options{MinFree: -1, Logger: quiet()})
			body := mailspine.BytesContent(make([]byte, 100<<10))
			each(b, n, func(i int) {
				if err := s.Put(ctx, newMessage(mailspine.MsgID(fmt.Sprint("m", i)), "example.net: ann"), body); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

func BenchmarkGroupCommit(b *testing.B) {
	for _, n := range []int{1, 5, 20, 50} {
		b.Run(fmt.Sprint(n, "-writers"), func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "log"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			buf := make([]byte, 10<<10)
			ch := make(chan chan struct{}, n)
			var wg sync.WaitGroup
			wg.Go(func() {
				for c := range ch {
					batch := []chan struct{}{c}
				more:
					for {
						select {
						case c, ok := <-ch:
							if !ok {
								break more
							}
							batch = append(batch, c)
						default:
							break more
						}
					}
					for range batch {
						if _, err := f.Write(buf); err != nil {
							b.Error(err)
						}
					}
					if err := f.Sync(); err != nil {
						b.Error(err)
					}
					for _, c := range batch {
						close(c)
					}
				}
			})
			each(b, n, func(int) {
				c := make(chan struct{})
				ch <- c
				<-c
			})
			close(ch)
			wg.Wait()
		})
	}
}

// BenchmarkPass is the life of a message: Put, Lease, Open, Settle.
func BenchmarkPass(b *testing.B) {
	s := mustOpen(b, b.TempDir(), &Options{MinFree: -1, Logger: quiet()})
	body := mailspine.BytesContent(make([]byte, 10<<10))
	each(b, 50, func(i int) {
		if err := s.Put(ctx, newMessage(mailspine.MsgID(fmt.Sprint("m", i)), "example.net: ann"), body); err != nil {
			b.Error(err)
		}
		l, err := s.Lease(ctx, queue.LeaseRequest{})
		if err != nil || len(l) != 1 {
			b.Errorf("%d leases, %v", len(l), err)
			return
		}
		r, err := s.Open(ctx, l[0].Envelope.ID)
		if err != nil {
			b.Error(err)
			return
		}
		r.Close()
		if errs, err := s.Settle(ctx, queue.Settlement{Token: l[0].Token, Results: []queue.Result{{State: queue.Delivered}}}); err != nil || errs[0] != nil {
			b.Error(errs, err)
		}
	})
}
