package msa

import (
	"context"
	"errors"
	"strings"

	"github.com/mailspine/mailspine"
)

// ErrNotYours is what [Senders] say of an address that the login may not use.
// The client is told 553 5.7.1 or 554 5.7.1.
var ErrNotYours = errors.New("msa: sender address is not the login's")

// Senders decide which addresses a login may send as. It is safe for concurrent
// use.
//
// MaySend returns nil if login may use addr, in MAIL FROM or in the header; an
// error that is or wraps ErrNotYours if it may not, or an *mailspine.Error to
// say it in other words. Any other error means that it could not be found out,
// and the client is told to come back. addr is never the null address, and is
// syntactically valid.
type Senders interface {
	MaySend(ctx context.Context, login *mailspine.Login, addr mailspine.Address) error
}

// The SendersFunc type makes Senders of a function.
type SendersFunc func(ctx context.Context, login *mailspine.Login, addr mailspine.Address) error

// MaySend calls f.
func (f SendersFunc) MaySend(ctx context.Context, login *mailspine.Login, addr mailspine.Address) error {
	return f(ctx, login, addr)
}

// OwnAddresses lets a login use its name, if that is an address, and its
// Addresses, each an address or "@domain" for all of a domain. Domains are
// compared as A-labels, and the case of ASCII letters does not matter, in local
// parts either: who has local parts that differ only in case needs Senders of
// its own.
func OwnAddresses(_ context.Context, login *mailspine.Login, addr mailspine.Address) error {
	if owns(login.Name, addr) {
		return nil
	}
	for _, a := range login.Addresses {
		if owns(a, addr) {
			return nil
		}
		domain, ok := strings.CutPrefix(a, "@")
		if ok && domain != "" && (mailspine.Address{Local: addr.Local, Domain: domain}).Equal(addr) {
			return nil
		}
	}
	return ErrNotYours
}

func owns(s string, addr mailspine.Address) bool {
	own, err := mailspine.ParseAddress(s)
	if err != nil {
		return false
	}
	own.Local, addr.Local = asciiLower(own.Local), asciiLower(addr.Local)
	return own.Equal(addr)
}

func asciiLower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// mayUse asks for the right to an address, and makes the answer a reply.
func (s *Server) mayUse(ctx context.Context, login *mailspine.Login, addr mailspine.Address, code int, what string) error {
	err := s.senders().MaySend(ctx, login, addr)
	var e *mailspine.Error
	if err != nil && !errors.As(err, &e) && errors.Is(err, ErrNotYours) {
		return mailspine.Errorf(code, "5.7.1", "%s", what).WithCause(err)
	}
	return err
}
