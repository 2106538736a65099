package smtpclient_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// How is one message sent to several recipients, and what became of each? The server here offers PIPELINING and CHUNKING, so that the
// commands and the message go out together.
func Example() {
	ctx := context.Background()
	conn, server := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); exampleServer(server) }()

	c := smtpclient.New(conn, &smtpclient.Options{
		Peer: "mx.example.org",
		Wire: func(sent bool, line string) {
			if sent {
				fmt.Println(">", line)
			}
		},
	})
	if r, err := c.Greeting(ctx); err != nil || r.Code != 220 {
		fmt.Println(r, err)
		return
	}
	if r, err := c.Hello(ctx, "out.example.com"); err != nil || !r.OK() {
		fmt.Println(r, err)
		return
	}
	msg, err := smtpclient.Prepare(ctx, mailspine.StringContent("Subject: hello\r\n\r\n...\r\n"), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	env := &mailspine.Envelope{
		From: mailspine.Address{Local: "ann", Domain: "example.com"},
		Recipients: []mailspine.Recipient{
			{Address: mailspine.Address{Local: "bob", Domain: "example.org"}},
			{Address: mailspine.Address{Local: "nobody", Domain: "example.org"}},
		},
	}
	res, err := c.Send(ctx, &smtpclient.Transaction{Env: env, Msg: msg})
	if err != nil {
		fmt.Println(err)
	}
	for _, o := range res.Outcomes {
		fmt.Println(env.Recipients[o.Rcpt].Address, "taken:", o.State == smtpclient.Taken, "reply:", o.Reply)
	}
	c.Quit(ctx)
	<-done
	// Output:
	// > EHLO out.example.com
	// > MAIL FROM:<ann@example.com>
	// > RCPT TO:<bob@example.org>
	// > RCPT TO:<nobody@example.org>
	// > BDAT 23 LAST
	// > (23 octets of message)
	// bob@example.org taken: true reply: 250 2.0.0 queued
	// nobody@example.org taken: false reply: 550 5.1.1 no such user
	// > QUIT
}

func exampleServer(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	io.WriteString(conn, "220 mx.example.org\r\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "EHLO"):
			io.WriteString(conn, "250-mx.example.org\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
		case strings.HasPrefix(line, "RCPT TO:<nobody"):
			io.WriteString(conn, "550 5.1.1 no such user\r\n")
		case strings.HasPrefix(line, "BDAT"):
			n, _ := strconv.ParseInt(strings.Fields(line)[1], 10, 64)
			io.CopyN(io.Discard, r, n)
			io.WriteString(conn, "250 2.0.0 queued\r\n")
		case line == "QUIT":
			io.WriteString(conn, "221 bye\r\n")
			return
		default:
			io.WriteString(conn, "250 2.1.0 ok\r\n")
		}
	}
}
