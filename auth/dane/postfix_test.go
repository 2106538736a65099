package dane

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine/auth/dns"
	"github.com/mailspine/mailspine/internal/peertest"
)

// smtpServer is as much of a mail server as it takes to see how a client does STARTTLS.
func smtpServer(t *testing.T, addr string, leaf *issued, rest ...*issued) {
	t.Helper()
	cert := tls.Certificate{PrivateKey: leaf.key}
	for _, c := range append([]*issued{leaf}, rest...) {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	session := func(c net.Conn) {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		r := bufio.NewReader(c)
		fmt.Fprint(c, "220 mx.example ESMTP\r\n")
		for range 20 {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			switch strings.ToUpper(strings.Fields(line + " ?")[0]) {
			case "EHLO":
				fmt.Fprint(c, "250-mx.example\r\n250 STARTTLS\r\n")
			case "STARTTLS":
				fmt.Fprint(c, "220 Go ahead\r\n")
				s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
				if s.HandshakeContext(t.Context()) != nil {
					return
				}
				c, r = s, bufio.NewReader(s)
			case "QUIT":
				fmt.Fprint(c, "221 Bye\r\n")
				return
			default:
				fmt.Fprint(c, "250 OK\r\n")
			}
		}
	}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { session(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}

// Which records hold for a host, as Postfix sees it over the same resolver and the same zones.
func TestLookupLikePostfix(t *testing.T) {
	finger := "/usr/sbin/posttls-finger"
	if _, err := os.Stat(finger); err != nil {
		finger = peertest.Need(t, "posttls-finger")
	}
	peertest.NeedRoot(t, "port 53")
	// An address of its own, where both ports are free.
	const port = 2525
	pid := os.Getpid()
	ip := fmt.Sprintf("127.97.%d.%d", pid>>8&0xff, pid&0xff)
	p := newPKI(t)
	smtpServer(t, net.JoinHostPort(ip, strconv.Itoa(port)), p.leaf, p.middle)
	zs := zones(Record(p.leaf.Certificate, UsageEE, SelectorSPKI, MatchSHA256))
	address := regexp.MustCompile(` A 192\.0\.2\.\d+$`)
	for _, z := range zs {
		for i, r := range z.Records {
			r = strings.ReplaceAll(r, "_25._tcp", fmt.Sprintf("_%d._tcp", port))
			z.Records[i] = address.ReplaceAllString(r, " A "+ip)
		}
	}
	u := peertest.StartUnbound(t, peertest.UnboundConfig{Zones: zs, Addr: ip + ":53"})
	dir := t.TempDir()
	config := "compatibility_level = 3.6\nsmtp_dns_support_level = dnssec\ninet_protocols = ipv4\ndnssec_probe =\n"
	if err := os.WriteFile(filepath.Join(dir, "main.cf"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &dns.Cache{Resolver: &dns.Client{Servers: []string{u.Addr}, Trusted: []string{u.Addr}, Timeout: 10 * time.Second}}
	signed := regexp.MustCompile(`(?:DNSSEC-signed TLSA record:|warning:) _\d+\._tcp\.(\S+?):? (unsupported)?`)
	outcomes := map[string]int{}
	for _, h := range []string{"mx", "none", "nodata", "pkix", "alias", "alias2", "out", "out2", "to", "tampered", "expired", "future", "bare",
		"badaddr", "badalias", "mx.stripped", "mx.forged", "host.plain", "in.plain"} {
		if !strings.Contains(h, ".") {
			h += ".signed"
		}
		h += ".example"
		out, err := u.Run(t, "env", "MAIL_CONFIG="+dir, finger, "-c", "-t10", "-l", "dane", "-L", "summary,verbose", fmt.Sprintf("[%s]:%d", h, port))
		if err != nil {
			t.Fatalf("%s: %v\n%s", h, err, out)
		}
		want := "nothing understood"
		switch m := signed.FindStringSubmatch(out); {
		case strings.Contains(out, "TLS connection established") && m != nil && strings.Contains(out, "Matched DANE"):
			want = "DANE by " + m[1]
		case strings.Contains(out, "TLS connection established") && m != nil && m[2] != "":
			want = "unusable at " + m[1]
		case strings.Contains(out, "TLS connection established") && m == nil:
			want = "none"
		case strings.Contains(out, "TLSA lookup error"), strings.Contains(out, "address lookup failed"):
			want = "deferred"
		}
		recs, err := Lookup(t.Context(), r, h, port)
		got := "none"
		switch {
		case err != nil:
			got = "deferred"
		case len(recs.Usable) > 0:
			got = "DANE by " + recs.Base
		case len(recs.All) > 0:
			got = "unusable at " + recs.Base
		}
		if got != want {
			t.Errorf("%s: Postfix %s, here %s (%v)\n%s", h, want, got, err, out)
		}
		outcomes[strings.Fields(want)[0]]++
	}
	t.Logf("%v", outcomes)
}
