package mailboxtest_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/mailboxtest"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

// A store that breaks the contract in one way.
type brokenStore struct {
	mailbox.Store
	how string
}

func (s brokenStore) Account(ctx context.Context, user string) (mailbox.Account, error) {
	if s.how == "users" {
		user = strings.ToLower(user)
	}
	a, err := s.Store.Account(ctx, user)
	return brokenAccount{a, s.how}, err
}

type brokenAccount struct {
	mailbox.Account
	how string
}

func (a brokenAccount) Open(ctx context.Context, name string) (mailbox.Mailbox, error) {
	m, err := a.Account.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return brokenMailbox{m, a.how}, nil
}

func (a brokenAccount) Deliver(ctx context.Context, msg mailspine.Content, o mailbox.DeliverOptions) (mailbox.Delivered, error) {
	if a.how == "id" {
		o.ID = ""
	}
	return a.Account.Deliver(ctx, msg, o)
}

type brokenMailbox struct {
	mailbox.Mailbox
	how string
}

func (m brokenMailbox) Append(ctx context.Context, msg mailspine.Content, o mailbox.AppendOptions) (mailbox.Copy, error) {
	if m.how == "content" {
		raw, err := mailspine.ReadContent(ctx, msg, 1<<20)
		if err != nil {
			return mailbox.Copy{}, err
		}
		msg = mailspine.StringContent(strings.ReplaceAll(string(raw), "\n", "\r\n"))
	}
	return m.Mailbox.Append(ctx, msg, o)
}

func (m brokenMailbox) MoveTo(ctx context.Context, uids []mailbox.UID, dest string) (mailbox.Copied, error) {
	if m.how != "move" {
		return m.Mailbox.MoveTo(ctx, uids, dest)
	}
	c, err := m.CopyTo(ctx, uids, dest)
	if err == nil {
		_, err = m.Expunge(ctx, uids, mailbox.ExpungeOptions{Any: true})
	}
	return c, err
}

func (m brokenMailbox) Changes(ctx context.Context, since mailbox.ModSeq) (mailbox.ChangeSet, error) {
	c, err := m.Mailbox.Changes(ctx, since)
	if m.how == "tombs" {
		c.Expunged = nil
	}
	return c, err
}

func (m brokenMailbox) LockMaildrop(ctx context.Context) (func(), error) {
	if m.how == "lock" {
		return func() {}, nil
	}
	return m.Mailbox.LockMaildrop(ctx)
}

const how = "MAILSPINE_TEST_BROKEN"

// TestBroken is what the child of TestKitNotices runs.
func TestBroken(t *testing.T) {
	if os.Getenv(how) == "" {
		t.Skip("for TestKitNotices")
	}
	mailboxtest.Run(t, mailboxtest.Harness{Open: func(t *testing.T, c mailboxtest.Config) mailbox.Store {
		return brokenStore{memory.New(&memory.Options{MaxTombs: c.MaxTombs, MaxMessage: c.MaxMessage}), os.Getenv(how)}
	}})
}

// A kit that never fails proves nothing: each of these stores fails the case that it should, which
// names the rule.
func TestKitNotices(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for broken, c := range map[string]struct{ name, rule string }{
		"content": {"AppendAndRead", "a message is kept octet for octet"},
		"users":   {"Users", "the name of a user is taken as it is, octet for octet"},
		"id":      {"DeliverOnce", "gets it no second time"},
		"move":    {"Quota", "what would pass the quota is ErrOverQuota"},
		"tombs":   {"Changes", "Changes returns what is new, changed or gone"},
		"lock":    {"Maildrop", "LockMaildrop excludes other LockMaildrop calls"},
	} {
		t.Run(broken, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(exe, "-test.run=^TestBroken$/^("+c.name+")$", "-test.count=1")
			cmd.Env = append(os.Environ(), how+"="+broken)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "the contract says: ") || !strings.Contains(string(out), c.rule) {
				t.Errorf("the kit passes it, or does not name the rule (%v):\n%s", err, out)
			}
		})
	}
}
