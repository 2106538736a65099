package mailspine

import (
	"log/slog"
	"strings"
)

// RedactAddresses keeps the local parts of mail addresses out of logs. It is
// made for slog.HandlerOptions.ReplaceAttr: in every string, error and Stringer
// among the attributes, and in the message, what stands before an @ becomes
// "***"; the domain, which operators need, stays. Groups are gone through by
// slog itself. Other values are left alone.
//
//	slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: mailspine.RedactAddresses}))
func RedactAddresses(_ []string, a slog.Attr) slog.Attr {
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(redact(v.String()))
	case slog.KindAny:
		switch x := v.Any().(type) {
		case error:
			a.Value = slog.StringValue(redact(x.Error()))
		case interface{ String() string }:
			a.Value = slog.StringValue(redact(x.String()))
		}
	}
	return a
}

// redact is linear in the length of s: going forward, a quote is looked at up
// to the next one, and going back from an @ no octet is looked at twice.
func redact(s string) string {
	if strings.IndexByte(s, '@') < 0 {
		return s
	}
	var b strings.Builder
	done := 0 // what is written, or replaced
	end := 0  // where the quoted string that was looked at last is closed
	replace := func(from, to int) {
		b.WriteString(s[done:from])
		if from < to {
			b.WriteString("***")
		}
		done = to
	}
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			// A quoted local part may hold anything, an @ too. An escaped quote
			// inside of what was looked at leads to the same end.
			if i >= end {
				end = closing(s, i)
			}
			if i < end && end+1 < len(s) && s[end+1] == '@' {
				replace(i, end+1)
				i = end + 1
			}
		case '@':
			j := i
			for j > done && isLocalByte(s[j-1]) {
				j--
			}
			replace(j, i)
		}
	}
	b.WriteString(s[done:])
	return b.String()
}

// closing returns where the quoted string that opens at i is closed; if nowhere, len(s).
func closing(s string, i int) int {
	for i++; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return len(s)
}

func isLocalByte(c byte) bool { return isAtext(c) && c != '/' && c != '=' || c == '.' || c >= 0x80 }
