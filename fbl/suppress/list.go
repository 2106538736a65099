package suppress

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// A Key says whom an entry is about, and whose mail.
//
// The address is compared with its local part in ASCII lower case and its domain as A-labels: two
// mailboxes that differ in case only are so rare that it is better to spare both.
type Key struct {
	// Tenant is whose mail is stopped, and Stream which of it; "": all of the tenant's. With neither, it
	// is everybody's. (So what is found out about mail that has neither counts for everybody: give mail
	// a tenant or a stream where there are several.)
	Tenant, Stream string
	Address        mailspine.Address
}

// clean returns the key in its normal form.
func (k Key) clean() (Key, error) {
	if err := k.Address.Validate(); err != nil {
		return k, fmt.Errorf("suppress: Key.Address: %w", err)
	}
	if k.Address.IsZero() {
		return k, errors.New("suppress: Key.Address is the null reverse-path")
	}
	domain, err := k.Address.ASCIIDomain()
	if err != nil {
		return k, fmt.Errorf("suppress: Key.Address: %w", err)
	}
	if len(k.Tenant) > MaxName || len(k.Stream) > MaxName {
		return k, fmt.Errorf("suppress: Key.Tenant or Key.Stream has over %d octets", MaxName)
	}
	if !utf8.ValidString(k.Tenant) || !utf8.ValidString(k.Stream) {
		return k, errors.New("suppress: Key.Tenant or Key.Stream is not UTF-8")
	}
	k.Address = mailspine.Address{Local: lower(k.Address.Local), Domain: domain}
	return k, nil
}

// lower changes ASCII letters only.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// A Reason is why somebody is suppressed.
type Reason string

// The reasons. Applications may have others of their own, of at most MaxName octets.
const (
	Complaint  Reason = "complaint"   // the reader reported a message as spam
	HardBounce Reason = "hard-bounce" // there is no such mailbox
	Manual     Reason = "manual"
)

// The bounds of an Entry, in octets. Longer evidence is cut.
const (
	MaxName     = 255
	MaxEvidence = 1000
)

// An Entry is one suppression.
type Entry struct {
	Key
	Reason Reason
	// Evidence is for people: which report, which reply. It may hold personal data.
	Evidence string
	// Time is when it was made; zero: when it is added.
	Time time.Time
	// Expires is when it ends; zero: never.
	Expires time.Time
}

// clean returns the entry in its normal form.
func (e Entry) clean(now time.Time) (Entry, error) {
	k, err := e.Key.clean()
	if err != nil {
		return e, err
	}
	e.Key = k
	if e.Reason == "" || len(e.Reason) > MaxName || !utf8.ValidString(string(e.Reason)) {
		return e, fmt.Errorf("suppress: Entry.Reason has not 1 to %d octets of UTF-8", MaxName)
	}
	if e.Time.IsZero() {
		e.Time = now
	}
	// Seconds are enough, and what is read back is what was added.
	e.Time = e.Time.UTC().Truncate(time.Second)
	if !e.Expires.IsZero() {
		e.Expires = e.Expires.UTC().Truncate(time.Second)
	}
	e.Evidence = cut(e.Evidence)
	return e, nil
}

func cut(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	if len(s) > MaxEvidence {
		s = strings.ToValidUTF8(s[:MaxEvidence], "")
	}
	return s
}

// live reports whether the entry counts at a time.
func (e *Entry) live(now time.Time) bool {
	return e.Expires.IsZero() || now.Before(e.Expires)
}

// longer reports whether e lasts longer than old.
func (e *Entry) longer(old *Entry) bool {
	return !old.Expires.IsZero() && (e.Expires.IsZero() || e.Expires.After(old.Expires))
}

// A List has suppressions. All methods are safe for concurrent use.
type List interface {
	// Check returns the entry that stops mail of a stream to an address: the one of the
	// stream, else the tenant's, else everybody's; nil if there is none. Expired entries
	// are none. An error means that it could not be found out: nothing must be sent then.
	Check(ctx context.Context, k Key) (*Entry, error)
	// Add makes an entry, durable in the sense of the driver when it returns nil. If there is one of the same key that
	// has not expired, it stays as it is, unless the new one lasts longer: the first evidence counts, and adding twice is harmless.
	Add(ctx context.Context, e Entry) error
	// Remove takes away the entry of exactly this key; that there is none is no error. Entries of
	// wider keys stay.
	Remove(ctx context.Context, k Key) error
	// All returns the entries that have not expired, in no order. Changes meanwhile may be in it or not. It ends
	// with the first error.
	All(ctx context.Context) iter.Seq2[Entry, error]
}

// ErrFull is matched by the error of Add when a list has as many entries as it
// may have. It is temporary.
var ErrFull = errors.New("suppress: the list is full")
