package fbl

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func addr(s string) mailspine.Address {
	a, err := mailspine.ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return a
}

func secret(c byte) []byte { return bytes.Repeat([]byte{c}, MinKey) }

func newTokens(now *time.Time) *Tokens {
	return &Tokens{Keys: [][]byte{secret(1)}, Domain: "bounces.example.org", Scopes: &MemoryScopes{}, Now: func() time.Time { return *now }}
}

func letter(rcpts ...string) *mailspine.Envelope {
	env := &mailspine.Envelope{ID: mailspine.NewMsgID(), From: addr("news@example.org"), Tenant: "shop", Stream: "news"}
	for _, r := range rcpts {
		env.Recipients = append(env.Recipients, mailspine.Recipient{Address: addr(r)})
	}
	return env
}

func TestTokens(t *testing.T) {
	now := t0
	tokens := newTokens(&now)
	env := letter("Bob@Example.com")
	path, err := tokens.Seal(env, env.Recipients[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(path.Local) > mailspine.MaxLocalPart || path.Validate() != nil || path.Domain != "bounces.example.org" {
		t.Errorf("the return path is %s, with %d octets", path, len(path.Local))
	}
	// In any case: relays change it.
	for _, a := range []mailspine.Address{path, {Local: strings.ToUpper(path.Local), Domain: "BOUNCES.example.org"}} {
		o, ok, err := tokens.OpenPath(t.Context(), a)
		if !ok || err != nil {
			t.Fatalf("%s: %v, %v", a, ok, err)
		}
		if o.Message != env.ID || o.Scope != (Scope{"shop", "news", addr("news@example.org")}) || !o.Day.Equal(t0.Truncate(24*time.Hour)) {
			t.Errorf("%+v", o)
		}
		if !o.For(addr("bob@example.com")) || o.For(addr("ann@example.com")) || o.For(addr("bob@example.org")) || o.For(mailspine.Address{}) {
			t.Error("the token is for somebody else")
		}
		info, ok, err := tokens.Open(a)
		if !ok || err != nil || info.ID != env.ID || info.Tenant != "shop" || info.Stream != "news" || strings.Contains(info.Recipient, "bob") || info.Recipient == "" {
			t.Errorf("%+v, %v, %v", info, ok, err)
		}
	}
	for _, a := range []string{"bob@example.org", "b-x@bounces.example.org", path.Local + "@example.org", "c" + path.Local[1:] + "@bounces.example.org", path.Local + "a@bounces.example.org"} {
		if _, ok, err := tokens.Open(addr(a)); ok || err != nil {
			t.Errorf("%s is a sealed path: %v", a, err)
		}
	}
	// It holds for MaxAge.
	now = t0.Add(DefaultMaxAge)
	if _, ok, err := tokens.Open(path); !ok || err != nil {
		t.Error(err)
	}
	now = now.Add(24 * time.Hour)
	if _, ok, err := tokens.Open(path); !ok || !errors.Is(err, ErrExpired) {
		t.Error(err)
	}
	now = t0.Add(-48 * time.Hour) // a clock that was wrong does not make tokens worthless
	if _, ok, err := tokens.Open(path); !ok || err != nil {
		t.Error(err)
	}
}

// No change of any character makes another token that opens.
func TestTokenForged(t *testing.T) {
	now := t0
	tokens := newTokens(&now)
	token, err := tokens.Token(t.Context(), letter(), addr("bob@example.com"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range token {
		for _, c := range []byte("abcdefghijklmnopqrstuvwxyz234567019=-+ \x00\xff") {
			forged := token[:i] + string([]byte{c}) + token[i+1:]
			if strings.EqualFold(forged, token) {
				continue
			}
			if _, err := tokens.OpenToken(t.Context(), forged); !errors.Is(err, ErrForged) {
				t.Fatalf("%q opens: %v", forged, err)
			}
		}
		for _, cut := range []string{token[:i], token[i:][:0], token + token[:1]} {
			if _, err := tokens.OpenToken(t.Context(), cut); !errors.Is(err, ErrForged) {
				t.Fatalf("%q opens: %v", cut, err)
			}
		}
	}
}

func TestTokenKeys(t *testing.T) {
	now := t0
	old := newTokens(&now)
	token, err := old.Token(t.Context(), letter(), addr("bob@example.com"))
	if err != nil {
		t.Fatal(err)
	}
	// A new key in front: what the old one made still opens.
	for c := byte(2); c < 40; c++ {
		both := &Tokens{Keys: [][]byte{secret(c), secret(1)}, Scopes: old.Scopes, Now: old.Now}
		o, err := both.OpenToken(t.Context(), token)
		if err != nil || !o.For(addr("bob@example.com")) {
			t.Fatalf("with another key: %v", err)
		}
		only := &Tokens{Keys: both.Keys[:1], Scopes: old.Scopes, Now: old.Now}
		if _, err := only.OpenToken(t.Context(), token); !errors.Is(err, ErrForged) {
			t.Fatalf("without the key: %v", err)
		}
		fresh, err := both.Token(t.Context(), letter(), addr("bob@example.com"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := old.OpenToken(t.Context(), fresh); !errors.Is(err, ErrForged) {
			t.Fatalf("the first key is not used: %v", err)
		}
	}
	// The scope is of a process that has forgotten it.
	lost := &Tokens{Keys: old.Keys, Scopes: &MemoryScopes{}, Now: old.Now}
	if _, err := lost.OpenToken(t.Context(), token); !errors.Is(err, ErrNoScope) {
		t.Error(err)
	}
	for name, bad := range map[string]*Tokens{
		"no key":     {Scopes: old.Scopes},
		"short key":  {Keys: [][]byte{secret(1)[1:]}, Scopes: old.Scopes},
		"no scopes":  {Keys: old.Keys},
		"bad domain": {Keys: old.Keys, Scopes: old.Scopes, Domain: "a b"},
		"17 keys":    {Keys: make([][]byte, 17), Scopes: old.Scopes},
		"no message": {},
	} {
		if _, err := bad.Token(t.Context(), letter(), addr("bob@example.com")); err == nil {
			t.Errorf("%s: a token was made", name)
		}
		if _, err := bad.OpenToken(t.Context(), token); err == nil || errors.Is(err, ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	env := letter()
	env.Stream = "\xff"
	if _, err := old.Token(t.Context(), env, addr("bob@example.com")); err == nil {
		t.Error("a stream that is not UTF-8")
	}
}

func TestPackID(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := mailspine.NewMsgID()
		if b, ok := unpackID(id); !ok || packID(b) != id {
			t.Fatalf("%s became %s", id, packID(b))
		}
		other := mailspine.MsgID(rapid.StringMatching(`[A-Za-z0-9_-]{1,64}`).Draw(t, "id"))
		b, ok := unpackID(other)
		if ok && packID(b) != other {
			t.Fatalf("%s became %s", other, packID(b))
		}
		if got := packID(messageBits(other)); got.Validate() != nil {
			t.Fatal(got)
		}
	})
}

func FuzzOpen(f *testing.F) {
	now := t0
	tokens := newTokens(&now)
	env := letter()
	env.ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV" // the same in each process of the fuzzer
	good, err := tokens.Token(f.Context(), env, addr("bob@example.com"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(strings.ToUpper(good))
	f.Add(strings.Repeat("a", tokenText))
	f.Fuzz(func(t *testing.T, s string) {
		_, err := tokens.OpenToken(t.Context(), s)
		if (err == nil) != (lower(s) == good) {
			t.Errorf("%q: %v", s, err)
		}
		if a := (mailspine.Address{Local: pathPrefix + s, Domain: tokens.Domain}); a.Validate() == nil {
			tokens.Open(a)
		}
	})
}

func BenchmarkToken(b *testing.B) {
	now := t0
	tokens := newTokens(&now)
	env, bob := letter(), addr("bob@example.com")
	for b.Loop() {
		if _, err := tokens.Token(b.Context(), env, bob); err != nil {
			b.Fatal(err)
		}
	}
}
