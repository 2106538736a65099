package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/msa"
)

// A user has a name, which is the local part of the address, and a password.
type user struct{ name, password string }

// The name of a user is part of an address, of a login and, encoded, of a path.
var validName = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)

// maxPassword bounds a password, in octets; it is the servers' bound too.
const maxPassword = 1024

// feedbackName is the local part of the address for complaints.
const feedbackName = "fbl"

// parseUsers reads the -user flags. No error shows a password, nor what may be one.
func (o *options) parseUsers(values []string) error {
	if len(values) == 0 {
		return errors.New("at least one is needed, such as -user ann:@passwordfile; -h lists the flags")
	}
	seen := map[string]bool{}
	for i, v := range values {
		name, password, ok := strings.Cut(v, ":")
		if !ok {
			return fmt.Errorf("number %d is not of the form name:password or name:@file", i+1)
		}
		name = lower(name)
		switch {
		case !validName.MatchString(name) || len(name) > 64:
			return fmt.Errorf("the name of number %d is not made of ASCII letters and digits, with single . - _ between them", i+1)
		case seen[name]:
			return fmt.Errorf("%s is there twice", name)
		case name == feedbackName:
			return fmt.Errorf("%s is the address for complaints, and no user", name)
		case name == reportsName:
			return fmt.Errorf("%s is the address for TLS reports, and no user", name)
		}
		seen[name] = true
		if file, ok := strings.CutPrefix(password, "@"); ok {
			var err error
			if password, err = o.readPassword(file); err != nil {
				return fmt.Errorf("password of %s: %w", name, err)
			}
		}
		if password == "" || len(password) > maxPassword || strings.ContainsFunc(password, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return fmt.Errorf("password of %s: it is empty, longer than %d octets, or has control characters", name, maxPassword)
		}
		o.users = append(o.users, user{name, password})
	}
	return nil
}

// readPassword returns the first line of a file.
func (o *options) readPassword(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows" {
		o.warnings = append(o.warnings, "others than its owner can read the password file "+file)
	}
	line, err := bufio.NewReader(io.LimitReader(f, 2*maxPassword)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// account is the name of a user in the mailbox store, and the address.
func (o *options) account(u user) string { return u.name + "@" + o.domain }

// first is the account that gets what must reach somebody.
func (o *options) first() string { return o.account(o.users[0]) }

// roleNames are the addresses that every domain has to have (RFC 2142).
func roleNames() []string { return []string{"postmaster", "abuse"} }

// A logins maps what people type to the names of accounts: "Ann" and
// "ann@example.org" are both ann@example.org.
type logins struct {
	domain string
	users  mailspine.Authenticator
}

// newLogins knows the users and their addresses. A user's tenant is its account, so that a complaint
// about one user's mail stops nobody else's.
func newLogins(o *options) (*logins, error) {
	users := &msa.MemoryUsers{}
	taken := map[string]bool{}
	for _, u := range o.users {
		taken[u.name] = true
	}
	for i, u := range o.users {
		l := mailspine.Login{Name: o.account(u), Tenant: o.account(u)}
		for _, role := range roleNames() {
			if i == 0 && !taken[role] {
				l.Addresses = append(l.Addresses, role+"@"+o.domain)
			}
		}
		if err := users.Add(l, u.password); err != nil {
			return nil, err
		}
	}
	return &logins{domain: o.domain, users: users}, nil
}

// Authenticate asks for the account that a login means.
func (l *logins) Authenticate(ctx context.Context, c mailspine.Credentials) (*mailspine.Login, error) {
	c.Username = l.account(c.Username)
	if c.AuthzID != "" {
		c.AuthzID = l.account(c.AuthzID)
	}
	return l.users.Authenticate(ctx, c)
}

func (l *logins) account(s string) string {
	name, domain, ok := cutLast(s, "@")
	if !ok {
		domain = l.domain
	} else if a, err := mailspine.ASCIIDomain(domain); err == nil {
		domain = a
	}
	return lower(name) + "@" + domain
}

// lower is for ASCII only: what Unicode takes for the same letter is another one in an address.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// newDirectory says whose mailbox an address is. Somebody reads postmaster and abuse in any case.
func newDirectory(o *options) (mda.Directory, error) {
	var addresses []string
	for _, u := range o.users {
		addresses = append(addresses, o.account(u))
	}
	d, err := mda.Users(addresses...)
	if err != nil {
		return nil, err
	}
	for _, role := range roleNames() {
		dest, ok := d[role+"@"+o.domain]
		if !ok {
			dest = []mda.Destination{{Account: o.first()}}
		}
		d[role+"@"+o.domain] = dest
		d[role+"@"+o.hostname] = dest // RCPT TO:<postmaster> is for the host (RFC 5321 section 4.5.1)
	}
	return d, nil
}

// furnish gives new accounts the mailboxes that mail programs look for. One who deletes them
// has deleted them.
func furnish(ctx context.Context, o *options, store mailbox.Store) error {
	for _, u := range o.users {
		a, err := store.Account(ctx, o.account(u))
		if err != nil {
			return err
		}
		list, err := a.Mailboxes(ctx)
		if err != nil {
			return err
		}
		if len(list) > 1 {
			continue
		}
		for _, m := range []struct {
			name string
			use  mailbox.SpecialUse
		}{{"Drafts", mailbox.UseDrafts}, {"Junk", mailbox.UseJunk}, {"Sent", mailbox.UseSent}, {"Trash", mailbox.UseTrash}} {
			err := a.Create(ctx, m.name, mailbox.CreateOptions{SpecialUse: m.use})
			if err == nil || errors.Is(err, mailbox.ErrExists) {
				err = a.SetSubscribed(ctx, m.name, true)
			}
			if err != nil {
				return fmt.Errorf("make %s of %s: %w", m.name, o.account(u), err)
			}
		}
	}
	return nil
}
