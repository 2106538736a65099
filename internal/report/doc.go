// Package report writes and reads multipart/report messages (RFC 6522), and in
// them delivery status notifications (RFC 3464, and RFC 6533 for addresses that are
// not ASCII) and abuse reports (RFC 5965). What it writes, it reads back.
//
// A report has three parts: a text for people, the same for programs, and the
// message that it is about, or its header. [Message] writes one; [Parse] reads
// one, from whomever: it is bounded in what it reads and in what it makes of that, total, and takes what real systems send.
package report
