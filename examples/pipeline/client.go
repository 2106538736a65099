package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// A mua is the user's mail program: go-smtp's client.
type mua struct {
	show           *show // nil: says nothing
	addr, host     string
	roots          *x509.CertPool
	user, password string
}

func (m *mua) say(format string, args ...any) {
	if m.show != nil {
		m.show.hop("MUA", format, args...)
	}
}

// submit sends a message the way a mail program does: STARTTLS, AUTH, and one
// transaction. It returns the server's answer to the message.
func (m *mua) submit(from string, to []string, msg string) (string, error) {
	c, err := smtp.DialStartTLS(m.addr, m.clientTLS())
	if err != nil {
		return "", fmt.Errorf("connect to submission with STARTTLS: %w", err)
	}
	defer c.Close()
	c.CommandTimeout, c.SubmissionTimeout = 10*time.Second, 20*time.Second
	if err := c.Auth(sasl.NewPlainClient("", m.user, m.password)); err != nil {
		return "", fmt.Errorf("AUTH: %w", err)
	}
	state, _ := c.TLSConnectionState()
	m.say("%s: STARTTLS, %s, certificate of %s verified", m.addr, tls.VersionName(state.Version), m.host)
	m.say("AUTH PLAIN as %s", m.user)
	text, err := transact(c, from, to, msg)
	if err == nil {
		m.say("message of %d octets accepted: %s", len(msg), text)
	}
	return text, err
}

func transact(c *smtp.Client, from string, to []string, msg string) (string, error) {
	if err := c.Mail(from, &smtp.MailOptions{Body: smtp.Body8BitMIME}); err != nil {
		return "", fmt.Errorf("MAIL: %w", err)
	}
	for _, r := range to {
		if err := c.Rcpt(r, nil); err != nil {
			return "", fmt.Errorf("RCPT: %w", err)
		}
	}
	w, err := c.Data()
	if err != nil {
		return "", fmt.Errorf("DATA: %w", err)
	}
	if _, err := strings.NewReader(msg).WriteTo(w); err != nil {
		return "", err
	}
	resp, err := w.CloseWithResponse()
	if err != nil {
		return "", err
	}
	c.Quit()
	return resp.StatusText, nil
}
