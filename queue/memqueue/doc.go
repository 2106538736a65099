// Package memqueue is a queue.Store in memory: for tests, for demonstrations,
// and for programs whose mail may be lost with the process.
//
// It is volatile. Put returns nil when the message is in memory, which is less
// than what a 250 should mean (RFC 5321 section 4.2.5): use filequeue where
// mail matters. In everything else it keeps the contract of queue.Store, and it
// passes the kit of package queuetest.
//
// It is bounded: at [Options.MaxMessages] and [Options.MaxBytes] Put refuses with 452
// 4.3.1, so that servers tell their clients to come back later. It keeps time
// with package time, so that a program that uses it can be tested in a
// testing/synctest bubble, without waiting.
package memqueue
