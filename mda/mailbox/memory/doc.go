// Package memory is a mailbox store that keeps everything in memory: for tests,
// demonstrations and programs that read what they receive at once.
//
// It keeps the whole contract of package mailbox but one: nothing is left when the
// process ends. What it holds is bounded by [Options].
package memory
