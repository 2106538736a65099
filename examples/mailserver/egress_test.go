package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

// A new address sends 50 copies on its first day, over a restart, and no more; what is over waits in the queue,
// and addresses stay out of the log when they are to.
func TestWarmUp(t *testing.T) {
	t.Parallel()
	ns, err := dnstest.Start(dnstest.Zone{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	today := func() int { return time.Now().UTC().YearDay() }
	day := today()
	beta := start(t, t.TempDir(), "-domain", "beta.example", "-user", "rita:moor", "-dns", ns.Addr())
	args := append(defaults(), "-dns", ns.Addr(), "-relay", beta.addr["smtp"], "-source", "127.0.0.1", "-warm-up", "-redact")
	dir := t.TempDir()
	p := start(t, dir, args...)
	submit := func(n int, name string) {
		t.Helper()
		var to []string
		for i := range n {
			to = append(to, fmt.Sprintf("rita+%s%d@beta.example", name, i))
		}
		if err := p.write(name, to...); err != nil {
			t.Fatal(err)
		}
	}
	arrived := func() int { return len(beta.mailbox("rita@beta.example", "")) }
	submit(30, "first")
	eventually(t, "the first 30 arrive", func() bool { return arrived() >= 30 })
	p.stop()
	p = start(t, dir, args...)
	submit(25, "second")
	eventually(t, "the cap is reached", func() bool { return arrived() >= 50 && strings.Contains(p.log.String(), "egress/source-cap") })
	p.stop()
	if n := arrived(); n != 50 && day == today() {
		t.Errorf("%d copies were sent on the first day, want 50", n)
	}
	for _, log := range strings.Split(p.log.String(), "\n") {
		if strings.Contains(log, "ann@") || strings.Contains(log, "rita") {
			t.Errorf("the log has an address: %s", log)
			break
		}
	}
	beta.stop()
}
