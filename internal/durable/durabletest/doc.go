// Package durabletest breaks what package durable relies on: [Faults] makes
// chosen calls to a file system fail, and [Disk] is a file system in memory that knows
// what has been synced, and what is left when the power goes.
//
// The two compose: Faults over a Disk gives failed syncs that lose data, as the
// kernel's do. A power-cut test runs its workload once to count the operations
// ([Disk.Ops]), then again for each of them with a cut there ([Disk.CutAt]), and
// opens what [Disk.Crash] returns, for several seeds.
package durabletest
