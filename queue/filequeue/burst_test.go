package filequeue

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/queue"
)

// A great many items become due at one instant. They are all counted at once; who comes then with one of another
// tenant waits for a few; what is on the last route is found though all others are excluded; and
// everything is leased, in order.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, routes = 6000, 600
		s := mustOpen(t, "spool", &Options{fs: new(durabletest.Disk), MinFree: -1, Logger: quiet()})
		defer s.Close()
		var all []queue.Route
		for i := range n {
			r := queue.Route(fmt.Sprintf("r%d", i%routes))
			if i < routes {
				all = append(all, r)
			}
			m := newMessage(mailspine.MsgID(fmt.Sprintf("m%05d-s", i)), string(r)+": ann")
			m.Envelope.Tenant = "hog"
			m.Delay = time.Hour
			mustPut(t, s, m)
		}
		time.Sleep(time.Hour)
		if st := must(s.Stats(ctx)); st.Due != n || st.Waiting != 0 {
			t.Fatalf("%+v, want all due", st)
		}
		sum := int64(0)
		for g, err := range s.Breakdown(ctx) {
			if err != nil || g.Due != n/routes || g.Waiting != 0 {
				t.Fatalf("%+v, %v", g, err)
			}
			sum += g.Due
		}
		if sum != n {
			t.Errorf("the groups have %d items due, want %d", sum, n)
		}
		late := newMessage("late-s", "r0: ann")
		late.Envelope.Tenant = "shop"
		mustPut(t, s, late)
		if err := s.Wait(ctx, all[:routes-1]); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			l := must(s.Lease(ctx, queue.LeaseRequest{TTL: time.Hour, Exclude: all[:routes-1]}))
			if len(l) != 1 || l[0].Route != all[routes-1] || string(l[0].Envelope.ID) != fmt.Sprintf("m%05d-s", i*routes+routes-1) {
				t.Fatalf("with all routes but one excluded: %+v", l)
			}
		}
		last := map[queue.Route]mailspine.MsgID{}
		for got := 3; got < n+1; {
			l := must(s.Lease(ctx, queue.LeaseRequest{Max: 100, TTL: time.Hour}))
			if len(l) == 0 {
				t.Fatalf("nothing is leased after %d", got)
			}
			for k, x := range l {
				if x.Envelope.Tenant == "shop" {
					if got+k > 2*routes {
						t.Errorf("the item of another tenant came after %d others on %d routes", got+k, routes)
					}
					continue
				}
				if x.Envelope.ID <= last[x.Route] {
					t.Fatalf("%s was leased after %s", x.Envelope.ID, last[x.Route])
				}
				last[x.Route] = x.Envelope.ID
			}
			got += len(l)
		}
		if st := must(s.Stats(ctx)); st.Leased != n+1 {
			t.Errorf("%+v, want all leased", st)
		}
		// All the leases end at one instant, too.
		time.Sleep(time.Hour)
		if st := must(s.Stats(ctx)); st.Due != n+1 {
			t.Errorf("%+v, want all due", st)
		}
		if errs := must(s.Settle(ctx, queue.Settlement{Token: queue.Token{Item: 1, Epoch: s.epoch}, Results: make([]queue.Result, 1)})); errs[0] == nil {
			t.Error("a lease that has ended can be settled")
		}
	})
}
