// Package smtpclient is the client's side of SMTP (RFC 5321) and LMTP (RFC 2033), made for those who send much mail to servers that they
// do not know: it is bounded in time and memory whatever a server says, keeps every recipient's result apart, and
// costs as few round trips as the protocol allows.
//
//	c := smtpclient.New(conn, nil)
//	defer c.Quit(ctx)
//	if r, err := c.Greeting(ctx); err != nil || r.Code != 220 { ... }
//	if r, err := c.Hello(ctx, "out.example.org"); err != nil || !r.OK() { ... }
//	msg, err := smtpclient.Prepare(ctx, content, nil)
//	res, err := c.Send(ctx, &smtpclient.Transaction{Env: env, Msg: msg})
//	for _, o := range res.Outcomes { ... }
//
// # Round trips
//
// What a transaction costs on an open connection, for a message of up to 64 KiB and recipients whose commands fit into 4 KiB:
//
//	the server offers            round trips
//	PIPELINING and CHUNKING      1
//	PIPELINING                   2
//	CHUNKING                     2 and one for each recipient
//	neither                      3 and one for each recipient
//
// A larger message waits for the replies to its recipients, and costs one more with CHUNKING. RSET, where it is needed, goes along with
// the next transaction.
//
// # Extensions
//
// PIPELINING, CHUNKING, 8BITMIME, BINARYMIME, SMTPUTF8, SIZE, DSN, ENHANCEDSTATUSCODES, STARTTLS, AUTH, REQUIRETLS, DELIVERBY, MT-PRIORITY and
// LIMITS are used where a server offers them and the envelope asks for them. Nothing is converted: what a
// server cannot take is refused without a command, see [Client.Send].
//
// # Authentication
//
// SCRAM-SHA-256-PLUS, SCRAM-SHA-256, OAUTHBEARER, XOAUTH2, PLAIN and LOGIN, the strongest that both sides have; see [Client.Auth].
//
// # What it does not do
//
// It looks up no names, opens no connections, and decides nothing about TLS: the caller dials, and hands StartTLS a
// complete tls.Config. It does not repeat anything. SASL security layers, BURL, ATRN, FUTURERELEASE and VRFY are not there.
// Package mta makes a relay of it.
package smtpclient
