package mda

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/mailspine/mailspine"
)

// A Directory says where mail for an address goes. It is safe for concurrent use.
//
// Lookup returns the destinations of an address: at least one, or an error that is [ErrNoUser]
// (senders are told 550 5.1.1). Every other error means that it could not be found
// out, and is answered as mailspine.Status says: temporarily, unless it is a *mailspine.Error.
// How the local part is compared is the Directory's business (RFC 5321 section
// 2.4), with the exception of postmaster, which is the same in any case. The
// caller may keep the slice, but not change it.
type Directory interface {
	Lookup(ctx context.Context, a mailspine.Address) ([]Destination, error)
}

// The DirectoryFunc type makes a Directory of a function.
type DirectoryFunc func(ctx context.Context, a mailspine.Address) ([]Destination, error)

// Lookup calls f.
func (f DirectoryFunc) Lookup(ctx context.Context, a mailspine.Address) ([]Destination, error) {
	return f(ctx, a)
}

// A Destination is a mailbox, or another address to be looked up.
type Destination struct {
	// Account is the user in the mailbox store.
	Account string
	// Mailbox is the mailbox of the account, made if it is missing; "": INBOX.
	Mailbox string
	// Alias, if not zero, is an address of this Directory whose destinations are
	// meant; the other fields are not looked at then.
	Alias mailspine.Address
}

// ErrNoUser is returned by a [Directory] for an address that nobody has.
var ErrNoUser = errors.New("mda: no such user")

// A MapDirectory is a Directory in a map, which must not change while it is in
// use. Keys are addresses with the local part in lower case and the domain in
// lower case and with A-labels (as from mailspine.ASCIIDomain), such as
// "ann@example.org"; a key "@example.org" is for all other addresses of a
// domain. Addresses are found without regard to the case of ASCII letters.
type MapDirectory map[string][]Destination

// Users returns a MapDirectory in which each of the addresses is an account of
// that name. An empty local part (""@example.org) is an error: its key would be
// that of all other addresses.
func Users(addresses ...string) (MapDirectory, error) {
	d := MapDirectory{}
	for _, s := range addresses {
		a, err := mailspine.ParseAddress(s)
		if err != nil {
			return nil, err
		}
		key, err := directoryKey(a)
		if err != nil {
			return nil, err
		}
		if a.Local == "" {
			return nil, fmt.Errorf("mda: address %q of a user has an empty local part", s)
		}
		d[key] = []Destination{{Account: key}}
	}
	return d, nil
}

// Lookup implements Directory.
func (d MapDirectory) Lookup(_ context.Context, a mailspine.Address) ([]Destination, error) {
	key, err := directoryKey(a)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoUser, err)
	}
	if dest := d[key]; len(dest) > 0 {
		return dest, nil
	}
	if dest := d[key[strings.LastIndexByte(key, '@'):]]; len(dest) > 0 {
		return dest, nil
	}
	return nil, ErrNoUser
}

// directoryKey returns the key of a MapDirectory for an address.
func directoryKey(a mailspine.Address) (string, error) {
	domain, err := a.ASCIIDomain()
	if err != nil {
		return "", err
	}
	return asciiLower(a.Local) + "@" + domain, nil
}

// asciiLower changes only ASCII letters: what the letters of other scripts
// become depends on whom one asks.
func asciiLower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}
