// Package peertest runs real mail programs as the other side of a test:
// clients found on the path, among them mbsync, mpop and fetchmail with a
// configuration file of their own, a private Postfix with its own configuration,
// queue and port, bound to loopback and without name service, and a private unbound that
// validates zones which the test signs.
//
// A peer that is missing skips the test on a user's machine, saying so, and
// fails it where MAILSPINE_STRICT=1 is set, as in CI.
package peertest
