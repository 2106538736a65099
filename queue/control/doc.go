// Package control gives an operator sight and control of a running queue, through a
// Unix socket: a [Server] beside the [queue.Queue], and a [Client] in another
// process.
//
//	l, err := control.Listen("/var/spool/mailspine/control")
//	s := &control.Server{Queue: q}
//	go s.Serve(l)
//
//	c := &control.Client{Path: "/var/spool/mailspine/control"}
//	changed, err := c.Control(ctx, queue.Filter{Tenant: "acme"}, queue.Command{Op: queue.OpHold, Reason: "unpaid"})
//
// A Client has the methods of the queue, and errors arrive as what they are: an
// unknown message is queue.ErrNotFound on both sides of the socket.
//
// # Who may
//
// Whoever can connect and is let in can read and delete all mail. The socket of [Listen] has mode
// 0600 from the moment at which it can be connected to, so that only its owner and root
// get that far. On Linux the server also asks the kernel who has connected (SO_PEERCRED): only root,
// the user that the server runs as, and [Server.AllowUIDs] are let in, whatever became of the mode. On other systems the mode
// of the socket and of the directories above it is all the protection that there is. Serve
// refuses listeners that are no Unix sockets: a network knows no such thing as file modes.
//
// # Protocol
//
// HTTP/1.1 with JSON, so that curl --unix-socket can be used as well. Durations are texts ("1h30m0s"), states and
// operations have the names of package queue.
//
//	GET  /v1/info                   what the server is, and what the queue has done since it was made
//	GET  /v1/health                 200 if all is well, otherwise an error
//	GET  /v1/stats                  queue.Stats
//	GET  /v1/breakdown              stream of {"group":{...}}
//	POST /v1/list                   {"filter":{...}}: stream of {"item":{...}}
//	POST /v1/control                {"filter":{...},"command":{"op":"hold","reason":"unpaid"}}: queue.Changed
//	POST /v1/bounce                 {"filter":{...},"status":{"code":550,"enhanced":"5.7.1","message":"Not wanted"}}: queue.Changed
//	GET  /v1/messages/ID/content    the message as it was put, message/rfc822
//
// A stream has one JSON object a line. The last one is {"end":true} or {"error":{...}}; a stream that ends
// otherwise was cut off. Errors have the members class, message, and code, enhanced and reply, which are what
// mailspine.Status makes of the error; the classes are bad_request, bad_filter, bad_command, forbidden, not_found,
// unsupported, closed, no_store, not_running, no_space and failed.
//
// A filter has the members id, item, route, tenant, stream, sender, recipient, domain, state, min_age and max_age.
// A request is refused if it has a member that the server does not know, or a member of the filter
// that is empty or null: a filter must never select more than was meant. {} selects everything.
//
// # Limits
//
// Requests have at most 64 KiB, and at most [Server.MaxConns] clients are served at a time. A client that is slow to
// ask ([Server.ReadTimeout]) or to take what it asked for ([Server.WriteTimeout]) is cut off; a list ends with
// its client. A command goes on for as long as it takes, and stops where it is when its client goes away: each item
// is changed entirely or not at all.
package control
