// The plot command draws the curves of docs/benchmarks.md. It reads lines of
// three fields, separated by tabs, from its standard input,
//
//	series	x	y
//
// and writes an SVG picture with one curve for each series. Several y of one x
// are several runs: the curve goes through their median, and a bar spans them
// all.
//
//	go run ./internal/bench/plot -title "Accepting" -x sessions -y "messages/s" -logx < sessions.tsv > sessions.svg
//
// Lines that are empty or begin with # are left out.
package main
