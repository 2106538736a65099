package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
	"github.com/mailspine/mailspine/queue"
)

// publishKey puts the key of a server's certificate into its signed zone (RFC 7672): whoever believes the zone needs no authority.
func publishKey(ns *dnstest.Server, host string, port uint16, certPEM []byte) error {
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	rec := dane.Record(cert, dane.UsageEE, dane.SelectorSPKI, dane.MatchSHA256)
	ns.Set(dane.Name(host, port), dnstest.TLSA(rec.Usage, rec.Selector, rec.MatchingType, rec.Data))
	return nil
}

// impostor: another server answers for beta's, with a certificate that the demo's authority issued for the very name. The key is
// not the one in beta's zone: the message waits, and goes when beta answers again.
func (d *demo) impostor(ctx context.Context) (string, error) {
	cert, key, err := d.ca.issue(d.beta.host())
	if err != nil {
		return "", err
	}
	other, err := serverTLS(cert, key)
	if err != nil {
		return "", err
	}
	other.SessionTicketsDisabled = true // it cannot resume what the real one began
	d.beta.stranger.Store(other)
	defer d.beta.stranger.Store(nil)
	d.alpha.relay.CloseIdle()
	d.show.hop("impostor", "answers for %s, with a certificate of the same authority and a key of its own", d.beta.host())

	from, to := "alice@"+d.alpha.Domain, "bob@"+d.beta.Domain
	id := newID("held", d.alpha.Domain)
	sent := compose(from, to, id, "For bob's eyes only")
	if _, err := d.alpha.mua(from).submit(from, []string{to}, sent); err != nil {
		return "", err
	}
	var r queue.ResultInfo
	select {
	case r = <-d.alpha.deferred:
	case <-ctx.Done():
		return "", errors.New("the message is not held back")
	}
	if n, err := d.bob.count(ctx, id); err != nil || n != 0 {
		return "", fmt.Errorf("the message went to the impostor (%v)", err)
	}
	d.beta.stranger.Store(nil)
	d.show.hop(d.beta.Domain, "answers itself again, and the operator flushes the queue")
	if c, err := d.alpha.queue.Control(ctx, queue.Filter{Item: r.Item}, queue.Command{Op: queue.OpFlush}); err != nil || c.Changed != 1 {
		return "", fmt.Errorf("flush: %+v, %w", c, err)
	}
	got, err := d.bob.await(ctx, hasID(id))
	if err != nil {
		return "", err
	}
	_, err = same(got, sent)
	return "nothing leaks to a wrong key; the right one gets it", err
}

// config is what a handshake uses: the stranger's while one answers; nil: our own.
func (o *org) config(*tls.ClientHelloInfo) (*tls.Config, error) { return o.stranger.Load(), nil }
