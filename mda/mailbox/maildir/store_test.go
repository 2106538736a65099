package maildir

import (
	"testing"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/mailboxtest"
)

// harness runs the kit over a file system, nil: the real one.
func harness(fsys func() durable.FS, maxIdle int) mailboxtest.Harness {
	type place struct {
		fsys durable.FS
		dir  string
	}
	places := map[mailbox.Store]place{}
	start := func(t *testing.T, p place, c mailboxtest.Config) mailbox.Store {
		s, err := open(p.fsys, p.dir, &Options{MaxTombs: c.MaxTombs, MaxMessage: c.MaxMessage, MaxIdle: maxIdle})
		if err != nil {
			t.Fatal(err)
		}
		places[s] = p
		return s
	}
	return mailboxtest.Harness{
		Open: func(t *testing.T, c mailboxtest.Config) mailbox.Store {
			p := place{durable.OS{}, ""}
			if fsys != nil {
				p.fsys, p.dir = fsys(), "/mail"
			} else {
				p.dir = t.TempDir()
			}
			return start(t, p, c)
		},
		Reopen: func(t *testing.T, s mailbox.Store, c mailboxtest.Config) mailbox.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return start(t, places[s], c)
		},
	}
}

func TestStore(t *testing.T) { mailboxtest.Run(t, harness(nil, 0)) }

// The same, with every account closed as soon as nobody uses it.
func TestStoreWithoutIdleAccounts(t *testing.T) {
	mailboxtest.Run(t, harness(func() durable.FS { return &durabletest.Disk{} }, -1))
}

// The memory driver passes the same test, so both do the same.
func TestModel(t *testing.T) {
	mailboxtest.RunModel(t, harness(func() durable.FS { return &durabletest.Disk{} }, 0))
}
