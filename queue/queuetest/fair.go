package queuetest

import (
	"fmt"
	"time"

	"github.com/mailspine/mailspine/queue"
)

var fairCases = []testCase{
	{"FairRoutes", "Lease goes round the routes that have items due.", func(k *kit) {
		for i := range 100 {
			k.put(message(fmt.Sprintf("hog%d", i), "hog.example: ann"))
		}
		for i := range 3 {
			k.put(message(fmt.Sprintf("small%d", i), "small.example: ann"))
			k.put(message(fmt.Sprintf("tiny%d", i), "tiny.example: ann"))
		}
		count := map[queue.Route]int{}
		for _, l := range k.lease(9, long) {
			count[l.Route]++
		}
		if count["hog.example"] != 3 || count["small.example"] != 3 || count["tiny.example"] != 3 {
			k.Errorf("the first 9 leases of three routes: %v, want 3 of each", count)
		}
		if l := k.lease(20, long); len(l) != 20 {
			k.Errorf("a route alone gets all: %d of 20", len(l))
		}
	}, 0},
	{"FairTurns", "Lease goes round the routes also over several calls.", func(k *kit) {
		for i := range 20 {
			k.put(message(fmt.Sprintf("a%d", i), "a.example: ann"))
			k.put(message(fmt.Sprintf("b%d", i), "b.example: ann"))
			k.put(message(fmt.Sprintf("c%d", i), "c.example: ann"))
		}
		count := map[queue.Route]int{}
		for range 12 {
			count[k.lease(1, long)[0].Route]++
		}
		if count["a.example"] != 4 || count["b.example"] != 4 || count["c.example"] != 4 {
			k.Errorf("12 leases, one at a time: %v, want 4 of each route", count)
		}
	}, 0},
	{"FairTenants", "Inside a route, Lease goes round the tenants.", func(k *kit) {
		for i := range 100 {
			m := message(fmt.Sprintf("hog%d", i), "example.net: ann")
			m.Envelope.Tenant = "hog"
			k.put(m)
		}
		m := message("invoice", "example.net: ann")
		m.Envelope.Tenant = "shop"
		k.put(m)
		for _, l := range k.lease(3, long) {
			if l.Envelope.Tenant == "shop" {
				return
			}
		}
		k.Error("behind 100 messages of another tenant, a message was not among the first 3")
	}, 0},
	{"FairOrder", "Lease takes the items of a tenant of a route in the order in which they became due.", func(k *kit) {
		d := 4 * k.tick // long enough to put the others, in real time
		late := message("late", "example.net: ann")
		late.Delay = 2 * d
		k.put(late)
		early := message("early", "example.net: ann")
		early.Delay = d
		k.put(early)
		for i := range 10 {
			k.put(message(fmt.Sprintf("m%d", i), "example.net: ann"))
		}
		time.Sleep(2*d + k.tick/2)
		var got []string
		for range 6 {
			for _, l := range k.lease(2, long) {
				got = append(got, string(l.Envelope.ID))
			}
		}
		want := "[m0 m1 m2 m3 m4 m5 m6 m7 m8 m9 early late]"
		if fmt.Sprint(got) != want {
			k.Errorf("leased in the order %v, want %v", got, want)
		}
	}, 0},
	{"Exclude", "Routes in Exclude are not leased, and lose nothing by it.", func(k *kit) {
		for i := range 3 {
			k.put(message(fmt.Sprintf("a%d", i), "a.example: ann"))
			k.put(message(fmt.Sprintf("b%d", i), "b.example: ann"))
			k.put(message(fmt.Sprintf("c%d", i), "c.example: ann"))
		}
		l := k.lease(10, long, "a.example", "c.example", "unknown.example")
		if len(l) != 3 {
			k.Errorf("leased %v, want the three of b.example", names(l))
		}
		for _, x := range l {
			if x.Route != "b.example" {
				k.Errorf("leased %s", x.Route)
			}
		}
		if l := k.lease(10, long, "a.example", "b.example", "c.example"); len(l) != 0 {
			k.Errorf("leased %v, all routes were excluded", names(l))
		}
		if l := k.lease(10, long); len(l) != 6 {
			k.Errorf("leased %v, want six", names(l))
		}
	}, 0},
	{"Routes", "A Route is compared as it is.", func(k *kit) {
		for i, r := range []queue.Route{"", "example.net", "Example.net", "example.net ", "pool/7 \x00é\xff"} {
			m := simple(fmt.Sprintf("m%d", i))
			m.Items[0].Route = r
			k.put(m)
		}
		l := k.lease(10, long, "example.net")
		if len(l) != 4 {
			k.Errorf("leased %q, want four routes", names(l))
		}
		seen := map[queue.Route]bool{}
		for _, x := range l {
			seen[x.Route] = true
		}
		for _, r := range []queue.Route{"", "Example.net", "example.net ", "pool/7 \x00é\xff"} {
			if !seen[r] {
				k.Errorf("route %q came back as another: %q", r, names(l))
			}
		}
	}, 0},
}
