// Package queuetest is the conformance kit for drivers of package queue.
//
// A driver's test file is a few calls. The first is for every driver:
//
//	func TestStore(t *testing.T) {
//		queuetest.Run(t, queuetest.Harness{
//			Open: func(t *testing.T) queue.Store { return open(t, t.TempDir()) },
//		})
//	}
//
// Each case is a subtest, and when it fails it prints the sentence of the
// contract of queue.Store that it enforces; [Rules] lists them. Cases for optional interfaces
// (queue.Inspector, queue.Controller, queue.Waiter, mailspine.Stager, reopening) are skipped, saying so, if the
// driver has none of it.
//
// A driver that keeps time with package time sets [Harness.Synctest]: its cases
// run in testing/synctest bubbles, so that hours pass at once, and a property test
// compares it with a model of the contract. Other drivers are run in real
// time with short leases. The kit then waits, but never concludes from a clock
// that something happened too late.
//
// # Durability
//
// What a driver promises to keep is tested by breaking what it relies on:
//
//   - [RunCrash] kills processes that use the store, at points that the driver names and at any other
//     moment, and accounts for every recipient of every message.
//   - [RunPowerCut] cuts the power of a simulated disk at each operation of a script.
//   - [RunFaults] makes each call to the disk fail: disk full, I/O error, short write, the death of the process.
//
// The last two want a [Disk], a file system in memory that knows what was synced; its three
// methods and the way in which the store comes to use it are the driver's. The script
// that they share puts small and large content, settles, retries and reports, and gives every command
// of queue.Controller; the store has to be a queue.Inspector, to be compared with what should be there.
//
// # How much
//
// By default these parts take a sample that is chosen anew each time, of a few seconds; the seed is logged, and
// MAILSPINE_SEED=n repeats it. MAILSPINE_CI=1 takes more, and MAILSPINE_SOAK=1 everything: 200 kills, a
// cut at every operation, a fault at every call. -short makes the backlogs small.
package queuetest
