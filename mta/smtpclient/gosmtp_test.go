package smtpclient

import (
	"bufio"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"

	smtp "github.com/emersion/go-smtp"
)

// Why there is a client of our own: what go-smtp's client (v0.25.1) lacks, shown on it. When
// one of these fails, the reason is gone.
func TestWhatGoSMTPClientLacks(t *testing.T) {
	t.Run("STARTTLS under a name of one's own", func(t *testing.T) {
		// STARTTLS is done by constructors only, which greet as "localhost" and know no
		// alternative when it is not offered.
		if _, ok := reflect.TypeFor[*smtp.Client]().MethodByName("StartTLS"); ok {
			t.Error("the client has a StartTLS method")
		}
		server := goSMTPScript(t, "S: 220 hi\nC: EHLO localhost\nS: 250-hi\nS: 250 STARTTLS\nC: STARTTLS\nS: 454 no")
		if _, err := smtp.NewClientStartTLS(server, nil); err == nil {
			t.Error("TLS out of nothing")
		}
	})
	t.Run("one command at a time", func(t *testing.T) {
		// It has no way to send RCPT before the reply to MAIL has come, where PIPELINING is offered: a message
		// takes four round trips.
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			defer server.Close()
			go func() {
				br := bufio.NewReader(server)
				io.WriteString(server, "220 hi\r\n")
				br.ReadString('\n')
				io.WriteString(server, "250-hi\r\n250 PIPELINING\r\n")
				br.ReadString('\n') // MAIL, which gets no reply
				io.Copy(io.Discard, br)
			}()
			c := smtp.NewClient(client)
			if err := c.Hello("x.example"); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- c.Mail("a@b.example", nil) }()
			synctest.Wait()
			select {
			case err := <-done:
				t.Errorf("Mail returned %v before the reply", err)
			default:
			}
			client.Close()
			<-done
		})
	})
	t.Run("keywords in lower case", func(t *testing.T) {
		// RFC 5321 section 4.1.1.1: not case sensitive. Mail would go in clear.
		c := smtp.NewClient(goSMTPScript(t, "S: 220 hi\nC: EHLO x.example\nS: 250-hi\nS: 250 starttls\nCLOSE"))
		defer c.Close()
		if err := c.Hello("x.example"); err != nil {
			t.Fatal(err)
		}
		if ok, _ := c.Extension("STARTTLS"); ok {
			t.Error("the client knows starttls")
		}
	})
	t.Run("2yz to the final dot", func(t *testing.T) {
		// RFC 5321 section 4.2.1: the first digit says that the message was taken; to
		// take 251 for an error is to send it twice.
		c := smtp.NewClient(goSMTPScript(t, "S: 220 hi\nC: EHLO localhost\nS: 250 hi\nC: DATA\nS: 354 go\nC: x\nC: .\nS: 251 taken\nCLOSE"))
		defer c.Close()
		if err := c.Hello("localhost"); err != nil {
			t.Fatal(err)
		}
		w, err := c.Data()
		if err != nil {
			t.Fatal(err)
		}
		w.Write([]byte("x\r\n"))
		if err := w.Close(); err == nil {
			t.Error("251 counts as taken")
		}
	})
	t.Run("a bound on replies", func(t *testing.T) {
		// A reply has no bound on its lines: this one has 20,000.
		c := smtp.NewClient(goSMTPScript(t, script("S: 220 hi\nC: EHLO localhost\nS> "+strings.Repeat(`250-on and on\r\n`, 20_000)+`250 end\r\n`+"\nCLOSE")))
		defer c.Close()
		if err := c.Hello("localhost"); err != nil {
			t.Errorf("the client refuses a reply of 20,000 lines: %v", err)
		}
	})
}

func goSMTPScript(t *testing.T, s script) net.Conn {
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer server.Close()
		if err := s.play(server, nil); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { client.Close(); <-done })
	return client
}
