package mailbox

import (
	"fmt"
	"slices"
	"strings"
)

// A Flag is a mark on a message: a system flag, which begins with a backslash,
// or a keyword (RFC 9051 section 2.3.2). See [CleanFlags] for the canonical form.
type Flag string

// The system flags.
const (
	Seen     Flag = `\Seen`
	Answered Flag = `\Answered`
	Flagged  Flag = `\Flagged`
	Deleted  Flag = `\Deleted`
	Draft    Flag = `\Draft`
)

// Some registered keywords (RFC 9051 section 2.3.2, RFC 5788).
const (
	Forwarded Flag = "$Forwarded"
	MDNSent   Flag = "$MDNSent"
	Junk      Flag = "$Junk"
	NotJunk   Flag = "$NotJunk"
	Phishing  Flag = "$Phishing"
)

// The bounds of flags.
const (
	MaxKeywords   = 64  // of one message
	MaxKeywordLen = 128 // octets of one keyword
)

// canonical has the spelling of the flags that have one. It is not modified.
var canonical = map[string]Flag{
	`\seen`: Seen, `\answered`: Answered, `\flagged`: Flagged, `\deleted`: Deleted, `\draft`: Draft,
	"$forwarded": Forwarded, "$mdnsent": MDNSent, "$junk": Junk, "$notjunk": NotJunk, "$phishing": Phishing,
}

// CleanFlag returns the canonical form of a flag, or an error that is
// ErrBadFlag. Flags are the same without regard to case (RFC 9051 section
// 2.3.2): those that this package names have its spelling, all other keywords lower case.
//
// Of the flags with a backslash only the five system flags can be stored. A
// keyword is an atom of IMAP: 1 to [MaxKeywordLen] printable ASCII characters
// other than ( ) { % * " \ ] and space.
func CleanFlag(f Flag) (Flag, error) {
	if len(f) == 0 || len(f) > MaxKeywordLen {
		return "", badFlag(f, "it is empty or too long")
	}
	low := []byte(f)
	for i, c := range low {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`(){%*"]`, c) >= 0 || c == '\\' && i > 0 {
			return "", badFlag(f, "a character in it is not allowed in an atom (RFC 9051 section 9)")
		}
		low[i] = lower(c)
	}
	if c, ok := canonical[string(low)]; ok {
		return c, nil
	}
	if low[0] == '\\' {
		return "", badFlag(f, "it is not a system flag that can be stored")
	}
	return Flag(low), nil
}

// CleanFlags returns a set of flags in canonical form: each cleaned with
// [CleanFlag], sorted, none twice; nil for none. More than [MaxKeywords]
// keywords are ErrBadFlag.
func CleanFlags(flags []Flag) ([]Flag, error) {
	if len(flags) == 0 {
		return nil, nil
	}
	if len(flags) > 4*MaxKeywords {
		return nil, badFlag("", "there are too many of them")
	}
	out := make([]Flag, len(flags))
	for i, f := range flags {
		c, err := CleanFlag(f)
		if err != nil {
			return nil, err
		}
		out[i] = c
	}
	slices.Sort(out)
	out = slices.Compact(out)
	n := 0
	for _, f := range out {
		if f[0] != '\\' {
			n++
		}
	}
	if n > MaxKeywords {
		return nil, badFlag("", "there are too many of them")
	}
	return out, nil
}

// HasFlag reports whether a set of canonical flags has one.
func HasFlag(flags []Flag, f Flag) bool {
	_, ok := slices.BinarySearch(flags, f)
	return ok
}

// ApplyFlags returns what a change makes of a set of flags, both canonical. The
// result shares nothing with them. Too many keywords are ErrBadFlag.
func ApplyFlags(have []Flag, op FlagOp, flags []Flag) ([]Flag, error) {
	switch op {
	case AddFlags:
		return CleanFlags(slices.Concat(have, flags))
	case ReplaceFlags:
		return CleanFlags(flags)
	case RemoveFlags:
		var out []Flag
		for _, f := range have {
			if !HasFlag(flags, f) {
				out = append(out, f)
			}
		}
		return out, nil
	}
	return nil, badFlag("", "unknown operation")
}

func badFlag(f Flag, why string) error {
	if len(f) > 40 {
		f = f[:40]
	}
	return fmt.Errorf("%w: %q: %s", ErrBadFlag, string(f), why)
}

// A SpecialUse says what a mailbox is for (RFC 6154 section 2).
type SpecialUse string

// The special uses.
const (
	UseNone    SpecialUse = ""
	UseAll     SpecialUse = `\All`
	UseArchive SpecialUse = `\Archive`
	UseDrafts  SpecialUse = `\Drafts`
	UseFlagged SpecialUse = `\Flagged`
	UseJunk    SpecialUse = `\Junk`
	UseSent    SpecialUse = `\Sent`
	UseTrash   SpecialUse = `\Trash`
)

// CleanSpecialUse returns the canonical spelling of a special use, or an error
// that is ErrBadName. \All and \Flagged are views of other mailboxes, which
// stores of this package do not have.
func CleanSpecialUse(u SpecialUse) (SpecialUse, error) {
	for _, c := range []SpecialUse{UseNone, UseArchive, UseDrafts, UseJunk, UseSent, UseTrash} {
		if asciiEqualFold(string(u), string(c)) {
			return c, nil
		}
	}
	return UseNone, badName(string(u), "it is not a special use that a mailbox can have")
}
