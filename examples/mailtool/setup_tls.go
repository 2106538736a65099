package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dane"
)

// maxCerts bounds the file of a certificate chain, in octets.
const maxCerts = 1 << 20

// A hostCert is the certificate chain of one mail exchanger, or of all that have none of their own.
type hostCert struct {
	host, file string // host "": all
	chain      []*x509.Certificate
}

// certFlag makes a repeatable flag with a file, or a host and a file.
func certFlag(list *[]hostCert) each {
	return func(s string) error {
		host, file, ok := strings.Cut(s, "=")
		if !ok {
			host, file = "", s
		} else {
			var err error
			if host, err = mailDomain(host); err != nil {
				return err
			}
		}
		if slices.ContainsFunc(*list, func(c hostCert) bool { return c.host == host }) {
			return errors.New("there are two for " + or(host, "all hosts"))
		}
		chain, err := readChain(file)
		*list = append(*list, hostCert{host, file, chain})
		return err
	}
}

// readChain reads the certificates of a PEM file, the server's own first.
func readChain(file string) (chain []*x509.Certificate, err error) {
	fi, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxCerts {
		return nil, fmt.Errorf("%s: larger than %d octets", file, maxCerts)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue // a key, which is nobody's business here
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("%s: there is no certificate (PEM)", file)
	}
	return chain, nil
}

// chainOf is the chain for a host; nil: there is none.
func chainOf(list []hostCert, host string) (chain []*x509.Certificate) {
	for _, c := range list {
		if c.host == host {
			return c.chain
		}
		if c.host == "" {
			chain = c.chain
		}
	}
	return chain
}

// completeCerts says what is wrong with the flags of certificates.
func (p *plan) completeCerts() error {
	for _, f := range []struct {
		name string
		list []hostCert
	}{{"tls-cert", p.certs}, {"tls-next-cert", p.nextCerts}} {
		for _, c := range f.list {
			if c.host != "" && !slices.Contains(p.hosts(), c.host) {
				return fmt.Errorf("-%s: %s is no MX host; those are %s", f.name, c.host, strings.Join(p.hosts(), ", "))
			}
		}
	}
	for _, host := range p.hosts() {
		if chainOf(p.nextCerts, host) != nil && chainOf(p.certs, host) == nil {
			return fmt.Errorf("-tls-next-cert: needs -tls-cert, the certificate that %s has now: with the record of the next one alone no sender would believe it", host)
		}
	}
	return nil
}

// hosts are the mail exchangers, each once.
func (p *plan) hosts() (hosts []string) {
	for _, m := range p.mx {
		if !slices.Contains(hosts, m.Host) {
			hosts = append(hosts, m.Host)
		}
	}
	return hosts
}

// tlsaRecords are the records "3 1 1" of the certificates. They hold as long as the key does: a renewed certificate with the same
// key needs no other.
func (p *plan) tlsaRecords() (recs []*record) {
	for _, host := range p.hosts() {
		now, next := chainOf(p.certs, host), chainOf(p.nextCerts, host)
		if now == nil {
			continue
		}
		rec := &record{
			Name: dane.Name(host, 25), Type: "TLSA", compare: p.compareTLSA(host, now, next),
			Purpose: "DANE: the key of the mail server's certificate, for a zone that is signed (RFC 7672)",
			absent:  "senders believe whoever answers for the server, unless MTA-STS says otherwise",
			note:    "Publish the record of the next key beside it, at least twice the TTL before the server has it, and take this one back after (RFC 7671 section 8.1).",
		}
		rec.Values = append(rec.Values, tlsaValue(eeRecord(now)))
		if next != nil {
			rec.note = ""
			if v := tlsaValue(eeRecord(next)); v != rec.Values[0] {
				rec.Values = append(rec.Values, v)
				rec.note = "The second one is for the next certificate. When the server has had it for twice the TTL, take the first one back (RFC 7671 section 8.1)."
			}
		}
		recs = append(recs, rec)
	}
	return recs
}

// eeRecord is the record of a chain's first certificate.
func eeRecord(chain []*x509.Certificate) mailspine.TLSA {
	return dane.Record(chain[0], dane.UsageEE, dane.SelectorSPKI, dane.MatchSHA256)
}

// tlsaValue is a record as Values has it.
func tlsaValue(r mailspine.TLSA) string {
	return fmt.Sprintf("%d %d %d %x", r.Usage, r.Selector, r.MatchingType, r.Data)
}
