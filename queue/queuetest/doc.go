// Package queuetest is the conformance kit for drivers of package queue.
//
// A driver's test file is one call:
//
//	func TestStore(t *testing.T) {
//		queuetest.Run(t, queuetest.Harness{
//			Open: func(t *testing.T) queue.Store { return open(t, t.TempDir()) },
//		})
//	}
//
// Each case is a subtest, and when it fails it prints the sentence of the
// contract of queue.Store that it enforces. Cases for optional interfaces
// (queue.Inspector, queue.Waiter, mailspine.Stager, reopening) are skipped, saying so, if the
// driver has none of it.
//
// A driver that keeps time with package time sets [Harness.Synctest]: its cases
// run in testing/synctest bubbles, so that hours pass at once, and a property test
// compares it with a model of the contract. Other drivers are run in real
// time with short leases. The kit then waits, but never concludes from a clock
// that something happened too late.
package queuetest
