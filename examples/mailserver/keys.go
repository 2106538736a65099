package main

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/mailspine/mailspine/auth"
	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/dkim"
	"github.com/mailspine/mailspine/auth/tlsrpt"
	"github.com/mailspine/mailspine/fbl"
)

// selector is the name under which the DKIM key is published.
const selector = "mailspine"

// newSigningKeys has the domain's DKIM key, made once, and writes down what has to be
// published for it, and for the server's certificate.
func newSigningKeys(o *options, cert *x509.Certificate) (auth.KeyMap, error) {
	text, err := once(filepath.Join(o.dir, "dkim.pem"), func() ([]byte, error) {
		key, err := dkim.GenerateRSA(2048)
		if err != nil {
			return nil, err
		}
		return dkim.MarshalKey(key)
	})
	if err != nil {
		return nil, fmt.Errorf("DKIM key: %w", err)
	}
	key, err := dkim.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("DKIM key %s: %w", filepath.Join(o.dir, "dkim.pem"), err)
	}
	// The token is signed too, so that a provider can tell that it is ours before it reports by it.
	k := dkim.SigningKey{Domain: o.domain, Selector: selector, Key: key, Headers: append(dkim.DefaultHeaders(), fbl.Header)}
	if err := k.Validate(); err != nil {
		return nil, fmt.Errorf("DKIM key: %w", err)
	}
	return auth.KeyMap{o.domain: {k}}, write(filepath.Join(o.dir, "dns.txt"), records(o, &k, cert))
}

// records are the lines of a zone file without which the domain's mail is not believed.
func records(o *options, k *dkim.SigningKey, cert *x509.Certificate) []byte {
	spf := "v=spf1 mx"
	for _, ip := range o.sources {
		if !ip.IsLoopback() && !ip.IsPrivate() {
			spf += " " + mechanism(ip)
		}
	}
	var b strings.Builder
	b.WriteString("; What has to be published for " + o.domain + ", besides the addresses of " + o.hostname + ".\n" +
		"; examples/mailtool lists all that is good to have, and checks it:\n" +
		"; mailtool setup -check -hostname " + o.hostname + " -selector " + k.Selector + " -dkim-key dkim.pem " + o.domain + "\n")
	fmt.Fprintf(&b, "%s.\tIN\tMX\t10 %s.\n", o.domain, o.hostname)
	dmarc := "v=DMARC1; p=none; rua=mailto:postmaster@" + o.domain
	tls := tlsrpt.Record{Destinations: []tlsrpt.Destination{{URI: "mailto:" + o.reports().String()}}}.String()
	for _, r := range [][2]string{
		{o.domain, spf + " -all"}, {k.Name(), k.Record().String()}, {"_dmarc." + o.domain, dmarc}, {tlsrpt.RecordName(o.domain), tls},
	} {
		fmt.Fprintf(&b, "%s.\tIN\tTXT", r[0])
		for text := r[1]; text != ""; {
			n := min(len(text), 255) // a string of a TXT record has at most 255 octets; ours have no quotes
			fmt.Fprintf(&b, " \"%s\"", text[:n])
			text = text[n:]
		}
		b.WriteString("\n")
	}
	// A record of a key that is not in use any more keeps mail away: this one is nothing to forget about.
	b.WriteString("; In a zone that is signed (DNSSEC) this lets others verify our certificate, whoever issued it. Publish the record of the next key\n" +
		"; before it is used (mailtool setup -tls-next-cert), and take this one back after it:\n" +
		"; " + dane.Format(o.hostname, 25, dane.Record(cert, dane.UsageEE, dane.SelectorSPKI, dane.MatchSHA256)) + "\n")
	return []byte(b.String())
}

// mechanism is the SPF term of an address.
func mechanism(ip netip.Addr) string {
	if ip.Is4() || ip.Is4In6() {
		return "ip4:" + ip.Unmap().String()
	}
	return "ip6:" + ip.WithZone("").String()
}

// newTokenKeys reads the secrets that seal the tokens of complaints, one a line in hexadecimal: the first
// seals, all open. The first is made once.
func newTokenKeys(o *options) ([][]byte, error) {
	file := filepath.Join(o.dir, "feedback.key")
	text, err := once(file, func() ([]byte, error) {
		key := make([]byte, fbl.MinKey)
		rand.Read(key)
		return []byte(hex.EncodeToString(key) + "\n"), nil
	})
	if err != nil {
		return nil, fmt.Errorf("feedback keys: %w", err)
	}
	var keys [][]byte
	for i, line := range strings.Fields(string(text)) {
		key, err := hex.DecodeString(line)
		if err != nil {
			return nil, fmt.Errorf("feedback keys: %s: line %d is not hexadecimal", file, i+1) // the error would show the key
		}
		keys = append(keys, key)
	}
	return keys, nil
}
