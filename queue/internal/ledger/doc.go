// Package ledger is the counting that the drivers of queue.Limiter share: a [Ledger] is a Limiter in memory, which
// tells a [Journal], if it has one, what must be known after a restart.
//
// # Durable counts
//
// A journal is not written for each Take. Of each key it has a record that says how much was granted at most, a block
// ahead of what was; only a Take that would pass that writes, and waits for it. After a crash what was reserved counts as used,
// so that nothing is granted twice; a crash costs at most a block of each key. All who wait share one write.
//
// Slots are not written: who held them died with the process.
//
// # Time
//
// Rates and permits run on what the clock's readings differ by, which is the monotonic clock while the process lives. The periods of
// quotas, and what was refilled while no process lived, go by the wall clock; the latest time seen is
// remembered, and a clock that shows an earlier one is taken to show that.
package ledger
