package mtasts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/mailspine/mailspine"
)

// recordPrefix and hostPrefix are put before a domain: where its record is, and the host that has its policy.
const (
	recordPrefix = "_mta-sts."
	hostPrefix   = "mta-sts."
)

// ErrNoRecord matches, with errors.Is, the error for a domain that has no TXT record of MTA-STS. It does not match
// where there is one that is broken, or several.
var ErrNoRecord = errors.New("no MTA-STS record")

// ParseRecord reads a TXT record, its strings joined, and returns the policy's id (RFC 8461 section 3.1). A text that does not
// begin with v=STSv1 and a semicolon is ErrNoRecord, which is no broken record but somebody else's. Unknown
// fields are ignored, and of two ids the first counts.
func ParseRecord(txt string) (id string, err error) {
	rest, ok := cutVersion(txt)
	if !ok {
		return "", ErrNoRecord
	}
	if len(txt) > MaxRecord {
		return "", fmt.Errorf("record longer than %d octets", MaxRecord)
	}
	found := false
	// As many fields as fit into MaxRecord.
	for rest != "" {
		var field string
		field, rest, _ = strings.Cut(rest, ";")
		field = strings.Trim(field, " \t")
		if field == "" && strings.Trim(rest, " \t") == "" {
			break // a semicolon may end the record
		}
		name, value, ok := strings.Cut(field, "=")
		if !ok || !isExtName(name) {
			return "", fmt.Errorf("record: %.40q is no name and value", field)
		}
		if name == "id" {
			if found {
				continue
			}
			if !isID(value) {
				return "", fmt.Errorf("record: the id %.40q is not 1 to 32 letters and digits", value)
			}
			id, found = value, true
			continue
		}
		if !isExtValue(value) {
			return "", fmt.Errorf("record: the value %.40q of %s has a character that is not allowed, or none", value, name)
		}
	}
	if !found {
		return "", errors.New("record: the id is missing")
	}
	return id, nil
}

// cutVersion returns what follows "v=STSv1" *WSP ";".
func cutVersion(txt string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(txt, "v=STSv1")
	if !ok {
		return "", false
	}
	return strings.CutPrefix(strings.TrimLeft(rest, " \t"), ";")
}

func isID(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !isAlnum(s[i]) {
			return false
		}
	}
	return true
}

// isExtValue: printable, without space, semicolon and equals sign.
func isExtValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == ';' || c == '=' {
			return false
		}
	}
	return s != ""
}

// LookupRecord returns the id of a domain's policy. domain may have U-labels. The error is an *[Error]: of KindRecord, which
// matches ErrNoRecord where there is no record and does not where it is broken or there are several; of KindDNS
// where nothing is known. In each case there is no policy to be had (RFC 8461 section 3.1), which does not end one that
// is kept from earlier.
func LookupRecord(ctx context.Context, r mailspine.Resolver, domain string) (id string, err error) {
	d, ok := policyDomain(domain)
	if !ok {
		return "", &Error{Kind: KindRecord, Domain: domain, Err: fmt.Errorf("%w: the domain can have none", ErrNoRecord)}
	}
	if r == nil {
		return "", &Error{Kind: KindDNS, Domain: d, Err: errors.New("no Resolver")}
	}
	texts, err := mailspine.LookupTXT(ctx, r, recordPrefix+d)
	if mailspine.IsNotFound(err) {
		return "", &Error{Kind: KindRecord, Domain: d, Err: ErrNoRecord}
	}
	if err != nil {
		return "", &Error{Kind: KindDNS, Domain: d, Err: err}
	}
	var record string
	n := 0
	for _, txt := range texts {
		if _, ok := cutVersion(txt); ok {
			record = txt
			n++
		}
	}
	switch {
	case n == 0:
		return "", &Error{Kind: KindRecord, Domain: d, Err: ErrNoRecord}
	case n > 1:
		return "", &Error{Kind: KindRecord, Domain: d, Err: fmt.Errorf("%d records, of which none counts", n)}
	}
	if id, err = ParseRecord(record); err != nil {
		return "", &Error{Kind: KindRecord, Domain: d, Err: err}
	}
	return id, nil
}

// Record returns the TXT record to publish at _mta-sts.DOMAIN for a policy: "v=STSv1; id=...;". Its id is p.ID, or if that is
// empty one made of the policy's content, so that it changes when the policy does and only then.
func Record(p Policy) string {
	id := p.ID
	if id == "" {
		sum := sha256.Sum256([]byte(p.String()))
		id = hex.EncodeToString(sum[:10])
	}
	return "v=STSv1; id=" + id + ";"
}
