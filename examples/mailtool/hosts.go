package main

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
)

// What names and addresses are compared with.

func (p *plan) compareMX(ctx context.Context, r mailspine.Resolver, a mailspine.Answer) verdict {
	got := byPreference(a.MX)
	for _, host := range slices.Concat(got...) {
		if host == "" {
			return bad("a null MX: the domain says that it takes no mail (RFC 7505)")
		}
		ans, err := r.Lookup(ctx, host, mailspine.TypeA)
		if mailspine.IsNotFound(err) {
			ans, err = r.Lookup(ctx, host, mailspine.TypeAAAA)
		}
		switch {
		case errors.Is(err, errElsewhere):
		case mailspine.IsNotFound(err):
			return bad("%s has no address: mail waits and then comes back to its sender", host)
		case err != nil:
			return unsure("the address of %s: %v", host, err)
		case ans.CanonicalName != "" && canonical(ans.CanonicalName) != host:
			return bad("%s is an alias (CNAME), which the name of a mail exchanger must not be (RFC 5321 section 5.1)", host)
		}
	}
	// Only the order of the preferences matters, not their numbers.
	if want := byPreference(p.mx); !slices.EqualFunc(got, want, slices.Equal) {
		return bad("mail goes to %s instead of %s, in this order", strings.Join(slices.Concat(got...), ", "), strings.Join(slices.Concat(want...), ", "))
	}
	return good()
}

// byPreference groups hosts of the same preference, in canonical form.
func byPreference(mx []mailspine.MX) (groups [][]string) {
	mx = slices.Clone(mx)
	slices.SortFunc(mx, func(a, b mailspine.MX) int {
		if a.Preference != b.Preference {
			return int(a.Preference) - int(b.Preference)
		}
		return strings.Compare(canonical(a.Host), canonical(b.Host))
	})
	for i, m := range mx {
		if i == 0 || m.Preference != mx[i-1].Preference {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], canonical(m.Host))
	}
	return groups
}

func (p *plan) compareAddrs(family string) compare {
	return func(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) verdict {
		for _, ip := range p.ips {
			if ip.Is4() == (family == "A") && !slices.ContainsFunc(a.Addrs, func(b netip.Addr) bool { return b.Unmap() == ip }) {
				return bad("%s is not an address of %s: its name is not confirmed, and much of its mail is refused", ip, p.host)
			}
		}
		return good()
	}
}

// anything is content with whatever there is.
func anything(context.Context, mailspine.Resolver, mailspine.Answer) verdict { return good() }

// onlyIPv6 accepts that a name has no IPv4 address if it has another.
func onlyIPv6(name string) func(context.Context, mailspine.Resolver) (verdict, []string) {
	return func(ctx context.Context, r mailspine.Resolver) (verdict, []string) {
		a, err := r.Lookup(ctx, name, mailspine.TypeAAAA)
		if err != nil {
			return verdict{}, nil
		}
		return good(), present(a, "AAAA")
	}
}

func (p *plan) comparePTR(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) verdict {
	for _, n := range a.Names {
		if canonical(n) == p.host {
			return good()
		}
	}
	return bad("the address has another name than %s: receivers compare it with what the server calls itself", p.host)
}

func compareSRV(s service) compare {
	return func(_ context.Context, _ mailspine.Resolver, a mailspine.Answer) verdict {
		for _, x := range a.SRV {
			target := canonical(x.Target)
			if target == s.host && (x.Port == s.port || s.host == "") {
				return good()
			}
		}
		if s.host == "" {
			return bad("the record offers what is said to be off")
		}
		return bad("mail programs are not sent to %s:%d", s.host, s.port)
	}
}
