package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/mailspine/mailspine/auth/dns/dnstest"
)

func main() {
	if os.Getenv(childEnv) != "" {
		if err := childMain(); err != nil {
			fmt.Fprintln(os.Stderr, "pipeline, child:", err)
			os.Exit(1)
		}
		return
	}
	dir := flag.String("dir", "", "work in this `directory`, which must be new or empty, and keep it; default: a temporary one, removed")
	keep := flag.Bool("keep", false, "keep the temporary directory")
	messages := flag.Int("messages", 50, "how `many` messages the last step sends, at most 100000")
	verbose := flag.Bool("v", false, "show the dialogue of the servers and the relays")
	flag.Parse()
	if flag.NArg() > 0 || *messages < 1 || *messages > 100_000 {
		fmt.Fprintln(os.Stderr, "pipeline: no arguments, and -messages from 1 to 100000; -h lists the flags")
		os.Exit(2)
	}
	os.Exit(run(*dir, *keep, *messages, *verbose))
}

func run(dir string, keep bool, messages int, verbose bool) int {
	begin := time.Now()
	sh := newShow(os.Stdout)
	if dir == "" {
		tmp, err := os.MkdirTemp("", "mailspine-pipeline-")
		if err != nil {
			fmt.Fprintln(os.Stderr, "pipeline:", err)
			return 1
		}
		dir = tmp
		if keep {
			defer fmt.Println("kept:", dir)
		} else {
			defer os.RemoveAll(dir)
		}
	} else if old, err := os.ReadDir(dir); err == nil && len(old) > 0 {
		fmt.Fprintf(os.Stderr, "pipeline: -dir %s is not empty\n", dir)
		return 2
	}
	fmt.Println(sh.paint(bold, "alice@alpha.example writes to bob@beta.example") + ", each with servers of its own on loopback, in " + dir)

	d := &demo{show: sh, dir: dir}
	ok := d.tell("Two organisations set up", func(ctx context.Context) (string, error) { return d.setUp(ctx, verbose) })
	if ok {
		d.tell("A message from client to mailbox", d.deliver)
		d.tell("The reader fetches it: IMAP and POP3", d.read)
		d.tell("Somebody else answers for the server", d.impostor)
		d.tell("A pool of addresses warms up", d.warm)
		d.tell("A forged message is refused", d.forge)
		d.tell("An unknown user: the sender is told", d.bounce)
		d.tell("A reader complains: no more to him", d.complain)
		d.tell("The queue's process is killed", d.crash)
		d.tellQuietly("Many messages at once", time.Duration(messages)*50*time.Millisecond, func(ctx context.Context) (string, error) { return d.many(ctx, messages) })
		d.tell("The books balance", d.settled)
	}
	if err := d.tearDown(); err != nil {
		sh.step("Shut down").end(err, "")
	}
	if !sh.summary(time.Since(begin)) {
		return 1
	}
	return 0
}

// tell runs one step within its time.
func (d *demo) tell(title string, f func(context.Context) (string, error)) bool {
	return d.run(d.show.step(title), patience, f)
}

// tellQuietly is tell for a step with too many hops to show.
func (d *demo) tellQuietly(title string, more time.Duration, f func(context.Context) (string, error)) bool {
	st := d.show.step(title)
	d.show.quiet(true)
	return d.run(st, patience+more, f)
}

func (d *demo) run(st *step, limit time.Duration, f func(context.Context) (string, error)) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	note, err := f(ctx)
	st.end(err, note)
	return err == nil
}

// setUp makes keys and certificates, publishes the zones, and starts both sides.
func (d *demo) setUp(ctx context.Context, verbose bool) (string, error) {
	ca, err := newAuthority()
	if err != nil {
		return "", err
	}
	d.ca = ca
	a, err := newSettings("alpha.example", filepath.Join(d.dir, "alpha"), ca, map[string]user{
		"alice@alpha.example": {"correct horse", "office"}, "shop@alpha.example": {"for sale", "shop"}, "news@alpha.example": {"old hat", "news"},
	})
	if err != nil {
		return "", err
	}
	b, err := newSettings("beta.example", filepath.Join(d.dir, "beta"), ca, map[string]user{"bob@beta.example": {Password: "battery staple"}})
	if err != nil {
		return "", err
	}
	a.Pools = alphaPools()
	zone := dnstest.Zone{"forger.example": {dnstest.TXT("v=spf1 ip4:127.0.0.1 -all")}}
	for _, s := range []*settings{&a, &b} {
		z, err := s.zone()
		if err != nil {
			return "", err
		}
		maps.Copy(zone, z)
	}
	if d.dns, err = dnstest.Start(zone); err != nil {
		return "", err
	}
	d.show.hop("DNS", "%s answers for alpha.example and beta.example: MX, SPF, DKIM, DMARC, BIMI, TLSA; signed", d.dns.Addr())
	a.DNS, b.DNS = d.dns.Addr(), d.dns.Addr()
	// Port 25 needs root, so each relay is told the other's port; the host
	// comes from the MX record. The listeners are open before either starts.
	mxA, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	mxB, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	a.MXPort, b.MXPort = port(mxB), port(mxA)
	if err := errors.Join(publishKey(d.dns, a.host(), b.MXPort, a.Cert), publishKey(d.dns, b.host(), a.MXPort, b.Cert)); err != nil {
		return "", err
	}
	if d.alpha, err = newOrg(a, d.show, verbose); err != nil {
		return "", err
	}
	if d.beta, err = newOrg(b, d.show, verbose); err != nil {
		return "", err
	}
	d.alpha.smtp, d.beta.smtp = mxA, mxB
	for _, o := range []*org{d.alpha, d.beta} {
		if err := o.start(); err != nil {
			return "", err
		}
		d.show.hop(o.Domain, "submission %s, receiver %s, IMAP %s, POP3 %s, all else in %s", o.submission.Addr(), o.smtp.Addr(), o.imaps.Addr(), o.pop3s.Addr(), o.Dir)
	}
	if d.alice, err = d.alpha.inbox(ctx, "alice@alpha.example"); err != nil {
		return "", err
	}
	if d.bob, err = d.beta.inbox(ctx, "bob@beta.example"); err != nil {
		return "", err
	}
	if d.postmaster, err = d.alpha.inbox(ctx, "postmaster@alpha.example"); err != nil {
		return "", err
	}
	return "keys, certificates, zones, queues, servers", nil
}

// tearDown stops everything that was started.
func (d *demo) tearDown() error {
	var errs []error
	for _, in := range []*inbox{d.alice, d.bob, d.postmaster} {
		if in != nil {
			errs = append(errs, in.close())
		}
	}
	for _, o := range []*org{d.alpha, d.beta} {
		if o != nil {
			errs = append(errs, o.stop())
		}
	}
	if d.dns != nil {
		errs = append(errs, d.dns.Close())
	}
	return errors.Join(errs...)
}
