// Relay is the smallest real mail transfer agent on the queue: it takes mail from the hosts of its own network, has
// it on the disk before it says 250, and passes it on to the hosts that it is told, for days if need be.
//
//	the network --SMTP--> mta.Receiver [-> auth.Signer] -> queue.Queue ==filequeue==> mta.Mux -> mta.Smarthost
//
// It is a smarthost for machines that only have a sendmail command, a store-and-forward hop in front of
// a mail system that is away at times, and the program that the benchmarks run beside other servers.
//
// # Try it
//
//	go build ./examples/relay
//	./relay -listen 127.0.0.1:2525 -spool /tmp/spool -relay mail.isp.example:25
//	swaks --server 127.0.0.1:2525 --from ann@example.org --to bob@example.net
//
// The address that it listens on is printed on stdout, alone on its line, when connections are taken; with port 0 it
// is a free one. Everything else goes to stderr.
//
// # Who may send
//
// Only clients from -networks, the addresses of this host unless it says otherwise; every recipient of another client is refused
// with 550 5.7.1. A network that is the whole Internet is a bad flag: there is no way to make this program an open
// relay. A client that may send is trusted to say who the sender is, and the limits on connections are
// those of Receiver for all clients together: keep strangers away from the port.
//
// # Where mail goes
//
// -routes is a file with a line for each domain, the first that fits being used: its own, then the longest of its
// parents that begin with a dot. All other mail goes to -relay.
//
//	# what is after a # is a comment
//	example.org   10.0.0.7:25
//	.example.org  10.0.0.8:25    # and all its subdomains
//	example.net   mx.example.net:2525
//
// Without -relay a recipient whose domain has no line is refused with 550 5.7.1. No MX is asked for: every host is
// the operator's choice. TLS is used where the host offers it. What cannot be delivered is tried again as
// queue.DefaultRetry has it, for 5 days, and then returned to its sender, over the same routes.
//
// -hold takes mail and sends none, whatever the routes; what was taken is sent by the next start without it. -sessions is how
// many deliveries there are at the same time, each over one connection; where there are routes, one destination gets half
// of them at most, so that a host that is away does not keep all waiting.
//
// # Sight and control
//
// The socket of -control, "control" in the spool unless it says otherwise, is for examples/mailtool, as the same user or root:
//
//	mailtool queue stats -spool /tmp/spool
//	mailtool queue list -spool /tmp/spool -domain example.net
//	mailtool queue bounce -spool /tmp/spool -sender ann@example.org
//
// # Signatures
//
// -dkim-key, -dkim-domain and -dkim-selector sign what has an author in that domain or below it, before it is queued; the
// rest goes on as it is, with a line in the log. examples/mailtool makes keys and says what has to be published.
//
// # Its end
//
// SIGTERM or SIGINT: no more connections, those that are in the middle of a message may end it, then deliveries may, for up to
// 20 seconds each; then the spool is closed. A second signal ends it at once, as kill -9 does: nothing that was
// answered with 250 is lost by that, and a message whose delivery was not noted yet is delivered once more.
//
// Exit codes: 0 after a signal, 1 when it cannot start or go on, 2 for bad flags.
//
// # Memory and processors
//
// A relay has little in memory that lives, and makes a lot of garbage. Go's collector would run each time as much
// garbage was made as there is living data, hundreds of times a second; it is told to wait for four times as much,
// and to hurry when the process comes to 512 MiB. GOGC and GOMEMLIMIT in the environment are obeyed instead: for
// a spool with several million messages waiting, raise the latter.
//
// Who waits for a sync of the disk keeps one of the processors that Go has for its goroutines, until the runtime notices. So
// that the clients need not wait along on a small host, Go is told that there are two more than there are; GOMAXPROCS is
// obeyed instead.
//
// # Not there
//
// Local delivery, MX lookups, users and passwords, TLS for its clients, checks of what comes in, limits for each
// client, changing anything without a restart. examples/mailserver has most of these.
package main
