// Package sched is the schedule of a queue's stores: which item is due, and
// whose turn it is. It is in memory, and knows nothing of messages.
//
// An item is a [Slot]. It belongs to a route, and on it to a tenant; the two are its
// line. A line has its items in bands, one for each priority, and a band has a heap
// of those that are waiting or leased and a list of those that are ready.
//
// # Turns
//
// Routes take turns, one item each. Inside a route the tenant goes next that has had least for its
// weight: each line has a virtual time, which an item moves on by its cost divided
// by the weight, and the line that is furthest behind is served. A line that comes
// back after a pause begins where the others are, so nothing is saved up. That is a weighted deficit round
// robin without the rounds: whatever costs and weights are, a turn takes the time of a
// heap's operation. Inside a line the highest priority goes first, and inside
// a priority what became due first.
//
// # Time
//
// Nothing happens by itself: Advance says what time it is. It does a bounded amount of work, so a million
// items that become due at one instant hold nobody up. Order and fairness do not depend on how far it
// has got in a line: what is taken is always the first of its band. Counts are right at any time, but take
// longer while there is something left to do.
//
// # Memory
//
// An item takes 32 octets, without pointers, in chunks that are never copied. Chunks that are empty are
// given back, but for one. A route and tenant take some 200 octets together, and go with their last item.
//
// Nothing here is safe for concurrent use: a store's lock guards it.
package sched
