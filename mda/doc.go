// Package mda delivers mail into mailboxes: the last hop, the MDA of RFC 5598
// section 4.3.
//
// An [Agent] is a mailspine.Deliverer, put behind a queue or a server, and a
// mailspine.RecipientChecker, which tells a server at RCPT whom it delivers
// for. A [Directory] says whose mailbox an address is; [MapDirectory] is one for
// tests and small systems. Package mailbox has the store, with drivers for
// memory and for Maildirs on disk.
//
//	queue ==> mta.Mux --> mda.Agent --> mailbox.Store
//	                          |
//	                      Directory
//
// The Agent adds Return-Path (RFC 5321 section 4.4) and Delivered-To, in which
// it recognises loops, and files into the mailbox that the Directory, the
// address's detail or the verdict of the receiver say. It changes nothing else: what was delivered
// can be read back octet for octet.
//
// A mailbox may want its messages in another form: text in UTF-8, text instead of HTML, seven
// bits. A [FormatPolicy], such as that of package convert, says which; the Agent then files
// what was derived into the mailbox, and before that the original, as it is, into another one.
//
// Not here yet: Sieve, forwarding to other systems, and LMTP. An alias
// that leads out of the system is refused as a fault of the configuration, 451 4.3.5.
package mda
