// Package arch holds the house rules as tests: who may import whom, which
// modules the project depends on, what each package exports and that it is
// documented, and which code may make data durable.
//
// The golden files are rewritten by
//
//	go test ./internal/arch -update
//
// so that a new dependency or a change of the exported API is a visible diff.
package arch
