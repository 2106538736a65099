package auth

import (
	"context"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/dkim"
)

// Keys finds the keys that sign a message. It is safe for concurrent use.
//
// SigningKeys gets the envelope, which has the tenant, and the author domain
// in lower case with A-labels. It returns as many keys as there shall be signatures, at most MaxKeys; none, with a nil
// error, means that there is no key for the domain. An error means that it
// could not be found out: the message is not sent, and stays with the caller.
// The slice is not modified.
type Keys interface {
	SigningKeys(ctx context.Context, env *mailspine.Envelope, domain string) ([]dkim.SigningKey, error)
}

// The KeysFunc type makes Keys of a function.
type KeysFunc func(ctx context.Context, env *mailspine.Envelope, domain string) ([]dkim.SigningKey, error)

// SigningKeys calls f.
func (f KeysFunc) SigningKeys(ctx context.Context, env *mailspine.Envelope, domain string) ([]dkim.SigningKey, error) {
	return f(ctx, env, domain)
}

// MaxKeys bounds the signatures of a message; it is what a dkim.Verifier looks
// at by default.
const MaxKeys = dkim.DefaultMaxSignatures

// A KeyMap has the keys by author domain, in lower case with A-labels, for all
// tenants. The keys of a domain also sign for its subdomains that have none of their own, which
// DMARC's relaxed alignment accepts. It must not change while it is in use.
type KeyMap map[string][]dkim.SigningKey

// SigningKeys looks for the domain and then for the domains above it.
func (m KeyMap) SigningKeys(_ context.Context, _ *mailspine.Envelope, domain string) ([]dkim.SigningKey, error) {
	return m.keys(domain), nil
}

func (m KeyMap) keys(domain string) []dkim.SigningKey {
	for {
		if k := m[domain]; len(k) > 0 {
			return k
		}
		_, up, ok := strings.Cut(domain, ".")
		if !ok {
			return nil
		}
		domain = up
	}
}

// TenantKeys are the keys of a service that sends for many tenants (Envelope.Tenant), from domains of their own and from
// domains that they share. It must not change while it is in use.
//
// A tenant's mail is signed with the keys that the tenant has for the author domain in Dedicated; if it has none, with those in Shared.
// No tenant gets another one's keys. The keys in Always come after them, whatever the author domain is: the
// service's own signature, by which it is found in feedback loops and
// which vouches for a tenant whose domain is new (double signing). A message for whose author domain there is no key is not signed
// with those alone, since nothing would be aligned: there is no key for it, and Signer.Required decides. One of Always that signs for the same domain and selector as
// another key is left out.
type TenantKeys struct {
	Dedicated map[string]KeyMap // by tenant
	Shared    KeyMap
	Always    []dkim.SigningKey
}

// SigningKeys implements Keys. There is no error.
func (k *TenantKeys) SigningKeys(_ context.Context, env *mailspine.Envelope, domain string) ([]dkim.SigningKey, error) {
	own := k.Dedicated[env.Tenant].keys(domain)
	if len(own) == 0 {
		own = k.Shared.keys(domain)
	}
	if len(own) == 0 || len(k.Always) == 0 {
		return own, nil
	}
	all := append(make([]dkim.SigningKey, 0, len(own)+len(k.Always)), own...)
next:
	for _, a := range k.Always {
		for i := range all {
			if all[i].Name() == a.Name() {
				continue next
			}
		}
		all = append(all, a)
	}
	return all, nil
}
