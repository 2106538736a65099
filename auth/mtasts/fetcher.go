package mtasts

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/dial"
)

// WellKnownPath is where the policy is on the policy host, mta-sts.DOMAIN (RFC 8461 section 3.2).
const WellKnownPath = "/.well-known/mta-sts.txt"

// DefaultTimeout is how long a fetch may take, as RFC 8461 section 3.3 suggests.
const DefaultTimeout = time.Minute

// A Fetcher gets policy files. It is safe for concurrent use as long as its fields do not change, keeps nothing between two
// fetches, and needs no closing. It does not bound how many fetches are made at a time; a [Cache] does.
type Fetcher struct {
	// Resolver looks up the policy host, and for a Cache the TXT records. nil: the system's for the policy host;
	// records are not found without one, so that nobody has a policy.
	Resolver mailspine.Resolver
	// AllowPrivate lists address ranges that a policy host may be in although they are not public, as loopback in
	// tests. Empty: none.
	AllowPrivate []netip.Prefix
	// Port is the policy host's; 0: 443. Another one is for tests: no sender uses it.
	Port uint16
	// Roots are the certificate authorities that are believed; nil: the system's.
	Roots *x509.CertPool
	// Timeout bounds a fetch from the lookup to the last octet, in addition to the context. Zero or negative: DefaultTimeout.
	Timeout time.Duration
}

func (f *Fetcher) timeout() time.Duration {
	if f.Timeout <= 0 {
		return DefaultTimeout
	}
	return f.Timeout
}

// Fetch gets the policy file of a domain, over HTTPS and by the rules of RFC 8461 section 3.3: the certificate must be
// valid for mta-sts.DOMAIN, redirects are not followed, only a 200 counts, the media type must be text/plain whatever
// its parameters, and nothing comes from a cache. TLS 1.2 is the least, at most MaxPolicy octets are read, and an address
// that is not public is not connected to (AllowPrivate). It does not look at the TXT record, and the policy has no ID.
// domain may have U-labels. The error is an *[Error] of KindFetch, KindWebPKI or KindPolicy.
func (f *Fetcher) Fetch(ctx context.Context, domain string) (Policy, error) {
	d, ok := policyDomain(domain)
	if !ok {
		return Policy{}, &Error{Kind: KindFetch, Domain: domain, Err: errors.New("the domain can have no policy host")}
	}
	fail := func(kind Kind, err error) (Policy, error) {
		return Policy{}, &Error{Kind: kind, Domain: d, Err: err}
	}
	host := hostPrefix + d
	if f.Port != 0 && f.Port != 443 {
		host += ":" + strconv.Itoa(int(f.Port))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+WellKnownPath, nil)
	if err != nil {
		return fail(KindFetch, err)
	}
	req.Header.Set("Accept", "text/plain")
	guard := &dial.Guard{Resolver: f.Resolver, AllowPrivate: f.AllowPrivate}
	client := guard.HTTPClient(&dial.HTTPOptions{Roots: f.Roots, Timeout: f.timeout(), MaxResponse: MaxPolicy})
	resp, err := client.Do(req)
	if errors.Is(err, dial.ErrTooLarge) {
		return fail(KindPolicy, err)
	}
	if err != nil {
		return fail(fetchKind(err), err)
	}
	defer resp.Body.Close()
	// RFC 8461 section 3.3: only 200, and 3xx must not be followed.
	if resp.StatusCode != http.StatusOK {
		return fail(KindFetch, fmt.Errorf("the policy host answers %d, and only 200 counts", resp.StatusCode))
	}
	// Section 3.2: text/plain, lest somebody who may put a picture on the host puts a policy there. Parameters are
	// ignored, broken ones included.
	media, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	if media = strings.Trim(media, " \t"); !strings.EqualFold(media, "text/plain") {
		return fail(KindPolicy, fmt.Errorf("the media type is %.80q and not text/plain", media))
	}
	body, err := io.ReadAll(resp.Body) // bounded by MaxResponse
	switch {
	case errors.Is(err, dial.ErrTooLarge):
		return fail(KindPolicy, err)
	case err != nil:
		return fail(KindFetch, err)
	}
	p, err := ParsePolicy(body)
	if err != nil {
		return fail(KindPolicy, err)
	}
	return p, nil
}
