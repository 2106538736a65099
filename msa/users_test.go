package msa

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/mailspine/mailspine"
)

func auth(u *MemoryUsers, name, password, authzID string) (*mailspine.Login, error) {
	return u.Authenticate(context.Background(), mailspine.Credentials{Username: name, Password: password, AuthzID: authzID})
}

func TestMemoryUsers(t *testing.T) {
	u := users(t)
	l, err := auth(u, "joe@example.org", "sesame", "")
	if err != nil || l.Name != "joe@example.org" || l.Tenant != "acme" || len(l.Addresses) != 2 {
		t.Fatalf("%+v, %v", l, err)
	}
	l.Addresses[0] = "changed@example.org" // ours is a copy
	if l, _ := auth(u, "joe@example.org", "sesame", "joe@example.org"); l == nil || l.Addresses[0] != "sales@example.org" {
		t.Errorf("%+v", l)
	}
	for _, c := range [][3]string{
		{"joe@example.org", "Sesame", ""}, {"joe@example.org", "", ""}, {"JOE@example.org", "sesame", ""}, {"", "", ""}, {"", "sesame", ""},
		{"nobody", "sesame", ""}, {"joe@example.org", "sesame", "role"}, {"joe@example.org", strings.Repeat("x", 100_000), ""}, {"joe@example.org\x00", "sesame", ""},
	} {
		if l, err := auth(u, c[0], c[1], c[2]); l != nil || !errors.Is(err, mailspine.ErrBadCredentials) {
			t.Errorf("%.30q: %v, %v", c, l, err)
		}
	}
	if err := u.Add(mailspine.Login{Name: "joe@example.org"}, "new"); err != nil {
		t.Fatal(err)
	}
	if _, err := auth(u, "joe@example.org", "sesame", ""); err == nil {
		t.Error("the old password still opens")
	}
	u.Remove("joe@example.org")
	if _, err := auth(u, "joe@example.org", "new", ""); err == nil {
		t.Error("removed, and logged in")
	}
	for _, c := range [][2]string{{"", "x"}, {"x", ""}, {"a\x00b", "x"}, {"a", "x\n"}, {"a", strings.Repeat("x", 1025)}} {
		if u.Add(mailspine.Login{Name: c[0]}, c[1]) == nil {
			t.Errorf("%.20q is added", c)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := u.Authenticate(ctx, mailspine.Credentials{Username: "role", Password: "sesame"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	var empty MemoryUsers
	empty.Memory, empty.Passes = 64, 1
	if _, err := auth(&empty, "x", "y", ""); !errors.Is(err, mailspine.ErrBadCredentials) {
		t.Error(err)
	}
}

func TestMemoryUsersConcurrent(t *testing.T) {
	u := users(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 5 {
				if _, err := auth(u, "role", "sesame", ""); err != nil {
					t.Error(err)
				}
				u.Add(mailspine.Login{Name: "new"}, "x")
				u.Remove("new")
			}
		})
	}
	wg.Wait()
}

// An unknown user does the same work as a wrong password: one hash of the same
// cost, with a salt.
func TestMemoryUsersCost(t *testing.T) {
	type cost struct {
		salt           int
		passes, memory uint32
	}
	var work []cost
	u := MemoryUsers{kdf: func(_, salt []byte, passes, memory uint32, _ uint8, length uint32) []byte {
		work = append(work, cost{len(salt), passes, memory})
		return make([]byte, length)
	}}
	if err := u.Add(mailspine.Login{Name: "joe"}, "sesame"); err != nil {
		t.Fatal(err)
	}
	for _, password := range []string{"wrong", "", strings.Repeat("x", maxCredential+1)} {
		for _, name := range []string{"joe", "nobody"} {
			work = nil
			auth(&u, name, password, "")
			if len(work) != 1 || work[0] != (cost{16, 2, 19 << 10}) {
				t.Errorf("%s with a password of %d octets: %+v", name, len(password), work)
			}
		}
	}
}
