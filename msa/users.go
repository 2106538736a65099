package msa

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"slices"
	"sync"

	"golang.org/x/crypto/argon2"

	"github.com/mailspine/mailspine"
)

// MemoryUsers is an Authenticator that knows its users from memory: for tests,
// demonstrations, and programs that keep their users elsewhere and load them.
// Passwords are kept as argon2id hashes (RFC 9106). The zero value has no users;
// it is safe for concurrent use. The fields must not change once it is used.
//
// An unknown user costs as much time as a wrong password. Names are compared
// octet by octet. Acting as another user (Credentials.AuthzID) is refused.
type MemoryUsers struct {
	// Memory is what one hash uses, in KiB, and Passes how often it goes over it. 0: 19 MiB and 2 passes, the
	// least that OWASP's advice on password storage has for argon2id. No more than four hashes are computed at once.
	Memory, Passes uint32

	mu    sync.RWMutex
	users map[string]memoryUser
	once  sync.Once
	slots chan struct{}
	dummy memoryUser
	kdf   func(password, salt []byte, passes, memory uint32, threads uint8, length uint32) []byte // nil: argon2.IDKey; tests count its calls
}

type memoryUser struct {
	login mailspine.Login
	salt  []byte
	hash  []byte
}

var _ mailspine.Authenticator = (*MemoryUsers)(nil)

// Add sets the password of a user, and what its login entails; one of the same
// name is replaced. Name and password are not empty, have no control characters
// and at most 1,024 octets.
func (u *MemoryUsers) Add(login mailspine.Login, password string) error {
	for _, v := range []string{login.Name, password} {
		if v == "" || len(v) > maxCredential || hasControl(v) {
			return errors.New("msa: user name or password is empty, too long, or has control characters")
		}
	}
	m := memoryUser{login: login, salt: make([]byte, 16)}
	m.login.Addresses = slices.Clone(login.Addresses)
	rand.Read(m.salt)
	m.hash = u.hash(password, m.salt)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.users == nil {
		u.users = map[string]memoryUser{}
	}
	u.users[login.Name] = m
	return nil
}

// Remove forgets a user. One that is logged in stays so.
func (u *MemoryUsers) Remove(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.users, name)
}

func (u *MemoryUsers) init() {
	u.once.Do(func() {
		u.slots = make(chan struct{}, 4)
		u.dummy = memoryUser{salt: make([]byte, 16), hash: make([]byte, 32)}
		rand.Read(u.dummy.salt)
		rand.Read(u.dummy.hash)
	})
}

// hash waits for one of the slots, so that a flood of logins is bounded in memory.
func (u *MemoryUsers) hash(password string, salt []byte) []byte {
	u.init()
	u.slots <- struct{}{}
	defer func() { <-u.slots }()
	memory, passes := u.Memory, u.Passes
	if memory == 0 {
		memory = 19 << 10
	}
	if passes == 0 {
		passes = 2
	}
	kdf := u.kdf
	if kdf == nil {
		kdf = argon2.IDKey
	}
	return kdf([]byte(password), salt, passes, memory, 1, 32)
}

// Authenticate checks a password.
func (u *MemoryUsers) Authenticate(ctx context.Context, c mailspine.Credentials) (*mailspine.Login, error) {
	u.init()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	u.mu.RLock()
	m, ok := u.users[c.Username]
	u.mu.RUnlock()
	if !ok {
		m = u.dummy
	}
	password := c.Password
	if len(password) > maxCredential {
		password, ok = "", false
	}
	equal := subtle.ConstantTimeCompare(u.hash(password, m.salt), m.hash) == 1
	if !ok || !equal || c.AuthzID != "" && c.AuthzID != c.Username {
		return nil, mailspine.ErrBadCredentials
	}
	login := m.login
	login.Addresses = slices.Clone(m.login.Addresses)
	return &login, nil
}
