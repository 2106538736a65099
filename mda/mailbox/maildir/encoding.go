package maildir

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/mailspine/mailspine/mda/mailbox"
)

const (
	// maxEncoded is the longest name of a folder; file systems take 255 octets.
	maxEncoded = 200
	// hashMark begins the hash of a name that is too long. It is no escape.
	hashMark = "=~"
	// hashed is how many octets of the encoding are left before the hash.
	hashed = 120
	// nameFile has the name of a mailbox whose folder's name is hashed.
	nameFile = "mailspine.name"
)

// encodeUser returns the name of a user's folder. It does not begin with a dot
// or a hyphen, is no device of Windows, and differs from that of every other user in more than case.
func encodeUser(user string) string {
	s := encode(user)
	if reserved(s) || s[0] == '-' {
		const hexDigits = "0123456789abcdef"
		s = "=" + string(hexDigits[s[0]>>4]) + string(hexDigits[s[0]&15]) + s[1:]
	}
	return shorten(s, user)
}

// encodeBox returns the name of a mailbox's folder in the user's folder: "" for
// INBOX, otherwise a dot and the encoded parts with dots between them.
func encodeBox(name string) string {
	if name == mailbox.Inbox {
		return ""
	}
	parts := strings.Split(name, mailbox.Separator)
	for i, p := range parts {
		parts[i] = encode(p)
	}
	return shorten("."+strings.Join(parts, "."), name)
}

// decodeBox is the reverse of encodeBox for names that are not hashed. ok is
// false for anything that encodeBox would not return.
func decodeBox(dir string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(dir, ".")
	if !ok {
		return "", false
	}
	parts := strings.Split(rest, ".")
	for i, p := range parts {
		if parts[i], ok = decode(p); !ok {
			return "", false
		}
	}
	name = strings.Join(parts, mailbox.Separator)
	clean, err := mailbox.CleanName(name)
	return name, err == nil && clean == name && encodeBox(name) == dir
}

// encode encodes one part of a name. Different parts have encodings that differ in
// more than the case of letters, and are ASCII.
func encode(s string) string {
	const hexDigits = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '@' || c == '+':
			b.WriteByte(c)
		case 'A' <= c && c <= 'Z':
			b.WriteByte('^')
			b.WriteByte(c + 'a' - 'A')
		default:
			b.WriteByte('=')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

func decode(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '^':
			if i++; i >= len(s) || s[i] < 'a' || s[i] > 'z' {
				return "", false
			}
			b.WriteByte(s[i] - 'a' + 'A')
		case '=':
			if i+2 >= len(s) {
				return "", false
			}
			raw, err := hex.DecodeString(s[i+1 : i+3])
			if err != nil {
				return "", false
			}
			b.Write(raw)
			i += 2
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), true
}

// shorten replaces the end of an encoding that is too long by a hash of the name.
func shorten(enc, name string) string {
	if len(enc) <= maxEncoded {
		return enc
	}
	cut := hashed
	// Not inside of an escape, so that what is left looks like an encoding.
	if i := strings.LastIndexByte(enc[:cut], '='); i >= cut-2 {
		cut = i
	} else if enc[cut-1] == '^' {
		cut--
	}
	sum := sha256.Sum256([]byte(name))
	return enc[:cut] + hashMark + hex.EncodeToString(sum[:])
}

// isHashed reports whether shorten shortened.
func isHashed(dir string) bool { return strings.Contains(dir, hashMark) }

// reserved tells the names of devices, which Windows does not take as folders.
func reserved(s string) bool {
	switch s {
	case "con", "prn", "aux", "nul":
		return true
	}
	return len(s) == 4 && (s[:3] == "com" || s[:3] == "lpt") && s[3] >= '0' && s[3] <= '9'
}
