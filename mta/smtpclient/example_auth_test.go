package smtpclient_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// How does one log in, and find out why that failed? Without TLS nothing is sent that shows the password; SCRAM does not.
func ExampleClient_Auth() {
	ctx := context.Background()
	login := &smtpclient.Credentials{Username: "ann", Password: "secret"}
	for _, offer := range []string{"PLAIN LOGIN", "PLAIN SCRAM-SHA-256"} {
		conn, server := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer server.Close()
			io.WriteString(server, "220 smart.example.org\r\n")
			for r := bufio.NewScanner(server); r.Scan(); {
				switch verb, _, _ := strings.Cut(r.Text(), " "); verb {
				case "EHLO":
					io.WriteString(server, "250-smart.example.org\r\n250 AUTH "+offer+"\r\n")
				case "AUTH":
					io.WriteString(server, "535 5.7.8 who are you?\r\n")
				default:
					io.WriteString(server, "221 bye\r\n")
				}
			}
		}()
		c := smtpclient.New(conn, &smtpclient.Options{Peer: "smart.example.org"})
		c.Greeting(ctx)
		c.Hello(ctx, "out.example.com")
		err := c.Auth(ctx, login)
		var failed *smtpclient.AuthError
		if errors.As(err, &failed) {
			fmt.Printf("mechanism %q, %s, temporary: %v\n", failed.Mechanism, mailspine.Status(err).Reply(), mailspine.Status(err).Temporary())
		}
		c.Quit(ctx)
		<-done
	}
	// Output:
	// mechanism "", 538 5.7.11 The authentication with smart.example.org needs TLS, temporary: false
	// mechanism "SCRAM-SHA-256", 535 5.7.8 who are you?, temporary: false
}
