// Package queue is the durable hand-over between taking responsibility for a
// message and passing it on.
//
// A [Queue] is a mailspine.Deliverer with two ends. Deliver stores a message, and nil means
// that it would survive a crash, so that a server may answer 250. Run takes what
// is due, gives it to the Deliverer that is Next, and tries again later what was
// refused for now, until it is delivered, or until the sender is told that it could not
// be.
//
//	q := &queue.Queue{Store: store, Next: relay, Hostname: "mx.example.org"}
//	go q.Run(ctx)            // until ctx is done
//	q.Deliver(ctx, env, msg) // nil: stored
//
// # Stores
//
// A [Store] is the driver: it remembers durably and atomically, and decides
// nothing. filequeue keeps mail in files, memqueue in memory; package queuetest
// is the kit that a driver of one's own has to pass. A Store lends work by leases: an item
// (a message for one route) belongs to one worker until its lease ends, and
// comes back by itself if the worker dies. Several processes can work on one
// store, if the driver allows it.
//
// # Policy
//
// The Queue owns all policy, each as one small interface: a [Router] says which recipients can be
// served together (default: those of one domain), a [Gate] which routes can be
// served now, a [RetryPolicy] when to try again and when to give up, and
// Queue.Notifications takes the delivery status notifications (RFC 3464).
//
// Fairness is the store's: destinations take turns, and the tenants of one, by Queue.Weight, so that a
// backlog of one tenant delays a message of another by a few deliveries. Concurrency bounds what is delivered at a
// time, PerRoute what of it goes one way: a destination that is slow or dead holds up nobody else.
// What waits takes no memory here, however much it is.
//
// # Reports
//
// Senders get the notifications that RFC 3461 and 3464 describe, with a part that people can read: failures, a delay once,
// success where it was asked for and the next hop will not tell, and what DELIVERBY (RFC 2852) asks for. Those of
// internationalised mail follow RFC 6533, and are plain where nothing needs UTF-8. Nobody answers to the null reverse-path;
// what fails of such messages is for Queue.Postmaster. A message expires and its sender is
// told of a delay also if it was only held, and never tried.
//
// # Operators
//
// List, StoreStats, Breakdown and Health look into a queue; Control holds, releases, flushes, deletes and reroutes what a
// [Filter] selects, and Bounce gives it up, with a report. They need a store that has [Inspector] and
// [Controller], as ours have. Package control offers them over a local socket.
//
// # Limits
//
// A [Limiter] keeps counts that several parts of a program, or several programs, share: slots, rates and quotas. memqueue and filequeue
// have one each. [Limited] takes from it for each delivery, [LimitGate] keeps routes that have no room from being leased,
// and [BlockLimiter] takes from a distant one in blocks.
//
// # What is counted
//
// Of each recipient accepted, exactly one of these holds at any time: it is delivered, it has
// failed, or it is in the store, waiting, leased or held. A recipient may get a
// message twice only if the process dies, or its lease is lost, between the next hop's
// acceptance and Settle.
package queue
