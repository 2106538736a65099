// The discard command is an SMTP server made of go-smtp that throws every
// message away: what it takes is what the protocol costs, and the ceiling of a
// server that keeps its mail. docs/benchmarks.md compares with it.
package main
