// The discard command is an SMTP server made of go-smtp that throws every
// message away: what it takes is what the protocol costs, and the ceiling of a
// server that keeps its mail. docs/benchmarks.md compares with it.
//
// With -count it is what relays are measured with: it counts the messages, ends when that many have come, and prints one line of
// JSON: the messages, how many of them have different Message-IDs, the connections, and the rate between the first and the last. It offers PIPELINING and
// CHUNKING to everybody.
package main
