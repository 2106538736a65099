package egress_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta"
	"github.com/mailspine/mailspine/mta/egress"
)

// Two sources that warm up, of which the second has twice the weight; then they are full, and
// the message waits for the next day.
func ExampleSelector() {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	warm := egress.Ladder{2, 4, 8}
	sel := &egress.Selector{
		Pools: []egress.Pool{{Name: "shared", Members: []egress.Member{
			{Source: egress.Source{Name: "a1", Addr: netip.MustParseAddr("192.0.2.1"), WarmUp: warm}},
			{Source: egress.Source{Name: "a2", Addr: netip.MustParseAddr("192.0.2.2"), WarmUp: warm}, Weight: 2},
		}}},
		State: egress.NewMemory(),
		Now:   func() time.Time { return now },
	}
	defer sel.Close()
	env := &mailspine.Envelope{From: mailspine.Address{Local: "ann", Domain: "sender.example"}}
	for range 5 {
		// An mta.Relay does this for each delivery.
		grants, err := sel.Choose(context.Background(), mta.EgressRequest{Env: env, Domain: "dest.example", Recipients: []int{0}})
		if err != nil {
			fmt.Println(err)
			return
		}
		g := grants[0]
		if g.Err != nil {
			fmt.Println(g.Err)
			continue
		}
		fmt.Println("sent from", g.Source)
		g.Done(1)
	}
	now = now.AddDate(0, 0, 1)
	e, _ := sel.Explain(context.Background(), env, "dest.example")
	fmt.Printf("on the next day: %s, sending day %d, %d of %d\n", e.Source, e.Sources[0].Number, e.Sources[0].Sent, e.Sources[0].Cap)
	// Output:
	// sent from a1
	// sent from a2
	// sent from a2
	// sent from a1
	// not now: warm-up: source a1 sent 2 of 2 on its day 1; source a2 sent 2 of 2 on its day 1 (egress/source-cap) until 2026-03-02T00:00:00Z
	// on the next day: a1, sending day 2, 0 of 4
}
