// The delay command is a wire of a certain length between two programs on one host: a TCP proxy in which every octet takes some time,
// in each direction. docs/benchmarks.md uses it to measure what a sender makes of distance.
//
//	delay -listen 127.0.0.1:2761 -to 127.0.0.1:2760 -delay 25ms
//
// What is sent is delayed, not throttled: octets that follow each other closely arrive so, in order, and the end of a
// direction arrives as late as its octets. A connection is opened at the other side after three times the delay, when the
// second half of a TCP handshake would have arrived: so the greeting of a server comes after two round
// trips, as it would over a real line. There is no window, no slow start and no loss.
//
// At the end (SIGTERM, SIGINT, or -limit) it prints one line of JSON: the connections, the octets each way, and the turns: how often clients
// sent something after something had reached them. With clients that wait for an answer and then speak, these are the round
// trips that they took, those for EHLO and QUIT among them.
package main
