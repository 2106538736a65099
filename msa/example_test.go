package msa_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/msa"
)

// A submission server, and a user who hands in a message.
func Example() {
	users := &msa.MemoryUsers{}
	users.Add(mailspine.Login{Name: "joe@example.org", Tenant: "example"}, "sesame")

	srv := &msa.Server{
		Hostname:  "mail.example.org",
		TLSConfig: selfSigned(),
		Auth:      users,
		Logger:    slog.New(slog.DiscardHandler),
		// A queue would stand here.
		Next: mailspine.DelivererFunc(func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content) error {
			h, err := mailspine.ReadHeader(ctx, msg, 0)
			if err != nil {
				return err
			}
			fmt.Println(env.Origin.Login, "of", env.Tenant, "to", env.Recipients[0].Address, "by", env.Origin.Proto)
			var names []string
			for _, f := range h.Fields {
				names = append(names, f.Name)
			}
			fmt.Println(strings.Join(names, " "))
			return nil
		}),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	served := make(chan error)
	go func() { served <- srv.Serve(l) }()

	c, err := smtp.DialStartTLS(l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		panic(err)
	}
	msg := "From: joe@example.org\r\nTo: ann@example.com\r\nBcc: boss@example.org\r\nSubject: hello\r\n\r\nHello.\r\n"
	send := func(from string) error {
		return c.SendMail(from, []string{"ann@example.com"}, strings.NewReader(msg))
	}
	fmt.Println(send("joe@example.org"))
	fmt.Println(c.Auth(sasl.NewPlainClient("", "joe@example.org", "sesame")))
	fmt.Println(send("boss@example.org"))
	fmt.Println(send("joe@example.org"))
	c.Quit()

	srv.Shutdown(context.Background())
	fmt.Println(<-served)
	// Output:
	// SMTP error 530: Authentication required
	// <nil>
	// SMTP error 553: Sender address is not yours
	// joe@example.org of example to ann@example.com by ESMTPSA
	// Received From To Subject Date Message-ID
	// <nil>
	// <nil>
}

func selfSigned() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}
