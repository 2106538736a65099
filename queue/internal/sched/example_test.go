package sched_test

import (
	"fmt"

	"github.com/mailspine/mailspine/queue/internal/sched"
)

func Example() {
	var s sched.Schedule
	names := map[sched.Slot]string{}
	add := func(name, tenant string, due int64) {
		i := s.Add(sched.Item{Route: "example.net", Tenant: tenant})
		names[i] = name
		s.Wait(i, due)
	}
	for i := range 3 {
		add(fmt.Sprint("newsletter ", i), "news", 10)
	}
	add("invoice", "shop", 20)
	add("reminder", "shop", 90)

	s.Advance(25)
	for _, i := range s.Lease(nil, 10, 300, nil) {
		fmt.Println(names[i])
	}
	next, _ := s.Next()
	fmt.Println("next at", next)
	// Output:
	// newsletter 0
	// invoice
	// newsletter 1
	// newsletter 2
	// next at 90
}
