package dane

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/peertest"
)

// shows is a TLS server that shows a chain to whoever connects, until the test ends.
func shows(t *testing.T, leaf *issued, rest ...*issued) string {
	t.Helper()
	cert := tls.Certificate{PrivateKey: leaf.key}
	for _, c := range append([]*issued{leaf}, rest...) {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				_ = c.(*tls.Conn).HandshakeContext(t.Context())
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// The same records and chains as OpenSSL judges them, which is what Postfix and Exim go by.
func TestVerifyLikeOpenSSL(t *testing.T) {
	openssl := peertest.Need(t, "openssl")
	p, other := newPKI(t), newPKI(t)
	named := func(name string, change func(*x509.Certificate)) *issued { return issue(t, p.middle, name, change) }
	old := func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-48*time.Hour), now.Add(-24*time.Hour) }
	client := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	cn := func(c *x509.Certificate) { c.DNSNames = nil }
	notCA := issue(t, p.root, "Not an authority", nil)
	oldMiddle := issue(t, p.root, "Old Middle", func(c *x509.Certificate) { authority(c); old(c) })

	type server struct {
		about string
		leaf  *issued
		rest  []*issued
	}
	full := server{"full chain", p.leaf, []*issued{p.middle, p.root}}
	servers := []server{
		full,
		{"without root", p.leaf, []*issued{p.middle}},
		{"leaf alone", p.leaf, nil},
		{"expired", named("mx.example.org", old), []*issued{p.middle, p.root}},
		{"for clients", named("mx.example.org", client), []*issued{p.middle, p.root}},
		{"another name", named("mx.example.net", nil), []*issued{p.middle, p.root}},
		{"wildcard", named("*.example.org", nil), []*issued{p.middle, p.root}},
		{"common name", named("mx.example.org", cn), []*issued{p.middle, p.root}},
		{"common name of another", named("mx.example.net", cn), []*issued{p.middle, p.root}},
		{"issued by no authority", issue(t, notCA, "mx.example.org", nil), []*issued{notCA, p.root}},
		{"self-signed", issue(t, nil, "mx.example.org", nil), nil},
		{"self-signed authority", issue(t, nil, "mx.example.org", func(c *x509.Certificate) { authority(c); c.DNSNames = []string{"mx.example.org"} }), nil},
		{"authority expired", issue(t, oldMiddle, "mx.example.org", nil), []*issued{oldMiddle, p.root}},
	}
	type trial struct {
		server
		recs []mailspine.TLSA
	}
	var trials []trial
	for usage := uint8(2); usage <= 3; usage++ {
		for selector := uint8(0); selector <= 1; selector++ {
			for matching := uint8(0); matching <= 2; matching++ {
				for _, c := range []*issued{p.leaf, p.middle, other.leaf} {
					trials = append(trials, trial{full, []mailspine.TLSA{Record(c.Certificate, usage, selector, matching)}})
				}
			}
		}
	}
	for _, s := range servers[1:] {
		top := p.root
		trials = append(trials,
			trial{s, []mailspine.TLSA{Record(s.leaf.Certificate, 3, 1, 1)}},
			trial{s, []mailspine.TLSA{Record(top.Certificate, 2, 0, 1)}},
			trial{s, []mailspine.TLSA{Record(top.Certificate, 2, 1, 0)}},
		)
		if len(s.rest) == 0 {
			trials = append(trials, trial{s, []mailspine.TLSA{Record(s.leaf.Certificate, 2, 1, 1)}}, trial{s, []mailspine.TLSA{Record(s.leaf.Certificate, 2, 0, 0)}})
		} else {
			trials = append(trials, trial{s, []mailspine.TLSA{Record(s.rest[0].Certificate, 2, 1, 1)}})
		}
	}
	mine := func(u, s, m uint8) mailspine.TLSA { return Record(p.leaf.Certificate, u, s, m) }
	not := func(u, s, m uint8) mailspine.TLSA { return Record(other.leaf.Certificate, u, s, m) }
	for _, recs := range [][]mailspine.TLSA{
		{mine(3, 1, 1), not(3, 1, 2)}, {not(3, 1, 1), mine(3, 1, 2)}, {not(3, 1, 1), mine(3, 1, 1)}, {mine(3, 1, 1), not(3, 0, 2)},
		{mine(3, 1, 1), not(2, 1, 2)}, {mine(3, 1, 0), not(3, 1, 2)}, {not(3, 1, 0), mine(3, 1, 1)},
	} {
		trials = append(trials, trial{full, recs})
	}
	addrs := map[string]string{}
	for _, s := range servers {
		addrs[s.about] = shows(t, s.leaf, s.rest...)
	}
	if os.Getenv("MAILSPINE_STRICT") != "1" && os.Getenv("MAILSPINE_SOAK") != "1" {
		i := 0 // every sixth, for a user's machine
		trials = slices.DeleteFunc(trials, func(trial) bool { i++; return i%6 != 0 })
	}
	agreed := map[bool]int{}
	for _, c := range trials {
		host, port, _ := net.SplitHostPort(addrs[c.about])
		args := []string{"s_client", "-connect", host + ":" + port, "-brief", "-dane_tlsa_domain", "mx.example.org", "-dane_ee_no_namechecks"}
		var what []string
		for _, r := range c.recs {
			args = append(args, "-dane_tlsa_rrdata", fmt.Sprintf("%d %d %d %X", r.Usage, r.Selector, r.MatchingType, r.Data))
			what = append(what, brief(r))
		}
		out, err := peertest.Run(t, "", openssl, args...)
		if err != nil || !strings.Contains(out, "Protocol version") {
			t.Fatalf("openssl %q: %v\n%s", args, err, out)
		}
		want := strings.Contains(out, "Verification: OK") && strings.Contains(out, "DANE TLSA")
		_, err = Verify(c.recs, chainOf(append([]*issued{c.leaf}, c.rest...)...), []string{"mx.example.org"}, now)
		if (err == nil) != want {
			t.Errorf("%s, %q: OpenSSL %v, here %v\n%s", c.about, what, want, err, out)
		}
		agreed[want]++
	}
	t.Logf("%d accepted, %d refused", agreed[true], agreed[false])
	if agreed[true] < 3 || agreed[false] < 3 {
		t.Errorf("%d accepted and %d refused: this compares nothing", agreed[true], agreed[false])
	}
}
