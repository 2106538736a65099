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
// # What is counted
//
// Of each recipient accepted, exactly one of these holds at any time: it is delivered, it has
// failed, or it is in the store, waiting, leased or held. A recipient may get a
// message twice only if the process dies, or its lease is lost, between the next hop's
// acceptance and Settle.
package queue
