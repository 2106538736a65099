package dane_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dane"
	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// What a sender does with each mail exchanger of an authentic MX answer.
func ExampleLookup() {
	key := make([]byte, 32)
	var resolver mailspine.Resolver = dnstest.Zone{ // in life an auth/dns.Client with a Trusted server
		"example.org":               {dnstest.Signed},
		"mx1.example.org":           {dnstest.A("192.0.2.1")},
		"_25._tcp.mx1.example.org":  {dnstest.TLSA(3, 1, 1, key)},
		"mx2.example.org":           {dnstest.A("192.0.2.2")},
		"_25._tcp.mx2.example.org":  {dnstest.TLSA(1, 1, 1, key)},
		"mx3.example.org":           {dnstest.A("192.0.2.3")},
		"mx4.example.org":           {dnstest.A("192.0.2.4")},
		"_25._tcp.mx4.example.org":  {dnstest.Bogus},
		"mail.example.org":          {dnstest.CNAME("shared.example.net")},
		"shared.example.net":        {dnstest.Unsigned, dnstest.A("192.0.2.5")},
		"_25._tcp.mail.example.org": {dnstest.TLSA(2, 0, 1, key)},
	}
	for _, host := range []string{"mx1.example.org", "mx2.example.org", "mx3.example.org", "mx4.example.org", "mail.example.org", "shared.example.net"} {
		recs, err := dane.Lookup(context.Background(), resolver, host, 25)
		switch {
		case err != nil:
			fmt.Printf("%s: not now: bogus %v\n", host, errors.Is(err, mailspine.ErrDNSBogus))
		case len(recs.Usable) > 0:
			fmt.Printf("%s: DANE, %d record at %s\n", host, len(recs.Usable), recs.Base)
		case len(recs.All) > 0:
			fmt.Printf("%s: TLS with any certificate\n", host)
		default:
			fmt.Printf("%s: no DANE, secure %v\n", host, recs.Secure)
		}
	}
	// Output:
	// mx1.example.org: DANE, 1 record at mx1.example.org
	// mx2.example.org: TLS with any certificate
	// mx3.example.org: no DANE, secure true
	// mx4.example.org: not now: bogus true
	// mail.example.org: DANE, 1 record at mail.example.org
	// shared.example.net: no DANE, secure false
}

// A handshake in which the certificate must match the records, and nothing else counts.
func ExampleVerify() {
	recs := dane.Records{Base: "mx.example.org", Names: []string{"mx.example.org"},
		Usable: []mailspine.TLSA{{Usage: 3, Selector: 1, MatchingType: 1, Data: make([]byte, 32)}}}
	config := &tls.Config{
		ServerName:         recs.Base,
		InsecureSkipVerify: true, // the authorities of the web have no say
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := dane.Verify(recs.Usable, cs.PeerCertificates, append(recs.Names, "example.org"), time.Now())
			return err
		},
	}
	// As the handshake with a server of another key does:
	err := config.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{selfSigned("mx.example.org")}})
	var why *dane.VerifyError
	if errors.As(err, &why) {
		fmt.Println(why)
		fmt.Println(why.Reason.ResultType()) // for a TLS report
	}
	// Output:
	// dane: no record matches the certificate (1 looked at)
	// tlsa-invalid
}

// The line for the zone file of a server with this certificate.
func ExampleFormat() {
	block, _ := pem.Decode([]byte(certPEM))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(dane.Format("mx.example.org", 25, dane.Record(cert, dane.UsageEE, dane.SelectorSPKI, dane.MatchSHA256)))
	// Output:
	// _25._tcp.mx.example.org. IN TLSA 3 1 1 b65097dee5fa93da465aa3629e8334f46d4dc1080b3b6fc9085add373034fd7c
}

// One's own hosts, as a sender with DANE sees them.
func ExampleCheck() {
	cert := selfSigned("mx1.example.org")
	record := dane.Record(cert, dane.UsageEE, dane.SelectorSPKI, dane.MatchSHA256)
	resolver := dnstest.Zone{
		"example.org":              {dnstest.Signed},
		"mx1.example.org":          {dnstest.A("192.0.2.1")},
		"_25._tcp.mx1.example.org": {dnstest.TLSA(record.Usage, record.Selector, record.MatchingType, record.Data)},
		"mx2.example.org":          {dnstest.A("192.0.2.2")},
		"_25._tcp.mx2.example.org": {dnstest.TLSA(3, 1, 1, make([]byte, 32))},
	}
	probe := func(_ context.Context, host string) ([]*x509.Certificate, error) {
		return []*x509.Certificate{cert}, nil // in life: connect, STARTTLS, and look
	}
	for _, f := range dane.Check(context.Background(), resolver, []string{"mx1.example.org", "mx2.example.org"}, 25, probe) {
		fmt.Println(f.Host, f.Level, f.Code)
	}
	// Output:
	// mx1.example.org note ok
	// mx1.example.org note rollover
	// mx2.example.org problem mismatch
}

func selfSigned(name string) *x509.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert
}

// certPEM is a self-signed certificate for mx.example.org.
const certPEM = `-----BEGIN CERTIFICATE-----
MIIBoTCCAUigAwIBAgIUM41g98eFub90J+CdDc3t08E4TREwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwObXguZXhhbXBsZS5vcmcwHhcNMjYxMTI0MTYyNDQ3WhcNMzYx
MTIxMTYyNDQ3WjAZMRcwFQYDVQQDDA5teC5leGFtcGxlLm9yZzBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABN1FeEja8HxXwezObZO1mrE9qoIUMAKwQA48SXA2LU19
yGH0MvdKQtzlaLi7JoAHSdn0eham8bJa0ygPUU5+qCOjbjBsMB0GA1UdDgQWBBTF
zWondcpuEoQxDfiG+6ry8ExqIjAfBgNVHSMEGDAWgBTFzWondcpuEoQxDfiG+6ry
8ExqIjAPBgNVHRMBAf8EBTADAQH/MBkGA1UdEQQSMBCCDm14LmV4YW1wbGUub3Jn
MAoGCCqGSM49BAMCA0cAMEQCIBYHtiFbj/9EwLrTcuLVjQsNdadGGcl0FUpZzKAQ
p6H6AiAFlR4h2nymGiTL48Ytxp58z0TdE/qY0FRBgENCmipOEw==
-----END CERTIFICATE-----
`
