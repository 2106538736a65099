package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// clientTLS verifies the certificate for the name of the server, wherever it listens.
func (m *mua) clientTLS() *tls.Config {
	return &tls.Config{ServerName: m.host, RootCAs: m.roots, MinVersion: tls.VersionTLS12}
}

// readIMAP returns the message with a Message-ID as an IMAP client with TLS from the first octet gets it.
func (m *mua) readIMAP(addr, id string) ([]byte, error) {
	conn, err := dialTLS(addr, m.clientTLS())
	if err != nil {
		return nil, err
	}
	c := imapclient.New(conn, nil)
	defer c.Close()
	if err := c.Login(m.user, m.password).Wait(); err != nil {
		return nil, fmt.Errorf("LOGIN: %w", err)
	}
	box, err := c.Select("INBOX", &imap.SelectOptions{ReadOnly: true}).Wait()
	if err != nil {
		return nil, fmt.Errorf("EXAMINE: %w", err)
	}
	found, err := c.UIDSearch(&imap.SearchCriteria{Header: []imap.SearchCriteriaHeaderField{{Key: "Message-ID", Value: id}}}, nil).Wait()
	if err != nil {
		return nil, fmt.Errorf("SEARCH: %w", err)
	}
	uids := found.AllUIDs()
	if len(uids) != 1 {
		return nil, fmt.Errorf("SEARCH finds %d messages with %s, not one", len(uids), id)
	}
	msgs, err := c.Fetch(imap.UIDSetNum(uids[0]), &imap.FetchOptions{BodySection: []*imap.FetchItemBodySection{{Peek: true}}}).Collect()
	if err != nil {
		return nil, fmt.Errorf("FETCH: %w", err)
	}
	if len(msgs) != 1 || len(msgs[0].BodySection) != 1 {
		return nil, errors.New("FETCH did not answer with one message")
	}
	m.say("IMAP %s: INBOX has %d messages, UID %d is the one", addr, box.NumMessages, uids[0])
	return msgs[0].BodySection[0].Bytes, c.Logout().Wait()
}

// readPOP3 returns the same as a POP3 client gets it.
func (m *mua) readPOP3(addr, id string) ([]byte, error) {
	conn, err := dialTLS(addr, m.clientTLS())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	p := &pop{conn: conn, r: bufio.NewReader(conn)}
	if _, err := p.status(); err != nil { // the greeting
		return nil, err
	}
	for _, line := range []string{"USER " + m.user, "PASS " + m.password} {
		if _, err := p.command(line); err != nil {
			return nil, fmt.Errorf("%s: %w", line[:4], err)
		}
	}
	list, err := p.lines("LIST")
	if err != nil {
		return nil, err
	}
	n := bytes.Count(list, []byte("\r\n"))
	for i := range n {
		msg, err := p.lines(fmt.Sprintf("RETR %d", i+1))
		if err != nil {
			return nil, err
		}
		if messageID(msg) == id {
			m.say("POP3 %s: %d messages, number %d is the one", addr, n, i+1)
			_, err := p.command("QUIT")
			return msg, err
		}
	}
	return nil, fmt.Errorf("none of %d messages has %s", n, id)
}

// dialTLS connects for at most ten seconds of conversation.
func dialTLS(addr string, c *tls.Config) (net.Conn, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", addr, c)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(10 * time.Second))
}

// A pop is as much of a POP3 client (RFC 1939) as reading needs.
type pop struct {
	conn net.Conn
	r    *bufio.Reader
}

func (p *pop) command(line string) (string, error) {
	if _, err := p.conn.Write([]byte(line + "\r\n")); err != nil {
		return "", err
	}
	return p.status()
}

func (p *pop) status() (string, error) {
	line, err := p.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	if text, ok := strings.CutPrefix(line, "+OK"); ok {
		return text, nil
	}
	return "", errors.New(strings.TrimSpace(line))
}

// lines returns the octets of an answer of several lines.
func (p *pop) lines(command string) ([]byte, error) {
	if _, err := p.command(command); err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	var b []byte
	for {
		line, err := p.r.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		if string(line) == ".\r\n" {
			return b, nil
		}
		b = append(b, bytes.TrimPrefix(line, []byte("."))...)
	}
}
