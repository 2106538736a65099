// Package mailboxtest checks that a driver keeps the contract of package
// mailbox. A driver's test is one call:
//
//	func TestStore(t *testing.T) {
//		mailboxtest.Run(t, mailboxtest.Harness{
//			Open: func(t *testing.T, c mailboxtest.Config) mailbox.Store { ... },
//		})
//	}
//
// Each case is a subtest with the sentence of the contract that it enforces, which is
// printed when it fails. [RunModel] compares a driver with a simple model
// under random operations.
package mailboxtest
