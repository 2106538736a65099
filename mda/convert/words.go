package convert

import (
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"
)

// An encodedWord is one of RFC 2047 section 2, found in a field.
type encodedWord struct {
	start, end int // in the field
	charset    string
	octets     string
	ok         bool // it could be decoded
}

// maxWord is the longest encoded word that is recognised. RFC 2047 has 75, and many senders
// have not.
const maxWord = 1000

// nextWord finds the first encoded word of s from index i on.
func nextWord(s string, i int) (encodedWord, bool) {
	for {
		k := strings.Index(s[i:], "=?")
		if k < 0 {
			return encodedWord{}, false
		}
		i += k
		if w, ok := wordAt(s, i); ok {
			return w, true
		}
		i += 2
	}
}

// wordAt reads the encoded word that begins at s[i].
func wordAt(s string, i int) (encodedWord, bool) {
	rest := s[i+2 : min(len(s), i+maxWord)]
	charset, rest, ok := strings.Cut(rest, "?")
	if !ok || charset == "" || len(rest) < 2 || rest[1] != '?' {
		return encodedWord{}, false
	}
	for k := 0; k < len(charset); k++ {
		if !isToken(charset[k]) || charset[k] >= 0x80 {
			return encodedWord{}, false
		}
	}
	kind, text := rest[0], rest[2:]
	text, _, ok = strings.Cut(text, "?=")
	if !ok || strings.ContainsAny(text, " \t\r\n?") {
		return encodedWord{}, false
	}
	w := encodedWord{start: i, end: i + 2 + len(charset) + 3 + len(text) + 2, charset: charset}
	switch kind {
	case 'b', 'B':
		b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
		w.octets, w.ok = string(b), err == nil
	case 'q', 'Q':
		w.octets, w.ok = decodeQ(text)
	default:
		return encodedWord{}, false
	}
	return w, true
}

func decodeQ(text string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '_':
			b.WriteByte(' ')
		case '=':
			if i+2 >= len(text) {
				return "", false
			}
			hi, lo := unhex(text[i+1]), unhex(text[i+2])
			if hi < 0 || lo < 0 {
				return "", false
			}
			b.WriteByte(byte(hi<<4 | lo))
			i += 2
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), true
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// recodeWords turns the encoded words of a field into UTF-8. Those that stand side by
// side in one charset are decoded together, because some senders cut characters
// in two. What is not decoded without loss stays, and is returned as unknown.
func recodeWords(s, nl string) (out string, unknown []string) {
	var b strings.Builder
	i := 0 // what is before it was copied
	for at := 0; ; {
		w, ok := nextWord(s, at)
		if !ok {
			break
		}
		// The run: words of that charset with nothing but white space between them.
		end, good := w.end, w.ok
		var octets strings.Builder
		octets.WriteString(w.octets)
		for good {
			k := end
			for k < len(s) && strings.IndexByte(" \t\r\n", s[k]) >= 0 {
				k++
			}
			if k == end || !strings.HasPrefix(s[k:], "=?") {
				break
			}
			next, ok := wordAt(s, k)
			if !ok || !next.ok || !strings.EqualFold(next.charset, w.charset) {
				break
			}
			end = next.end
			octets.WriteString(next.octets)
		}
		at = end
		if !good {
			continue
		}
		text, ok := decodeWord(w.charset, octets.String())
		if !ok {
			label, _, _ := strings.Cut(w.charset, "*")
			if !isUTF8(label) && !unlabelled(label) && !strings.EqualFold(label, unknown8Bit) {
				unknown = append(unknown, w.charset)
			}
			continue
		}
		b.WriteString(s[i:w.start])
		b.WriteString(strings.Join(encodeWords("utf-8", text), nl+" "))
		i = end
	}
	if i == 0 {
		return s, unknown
	}
	b.WriteString(s[i:])
	return b.String(), unknown
}

// unknown8Bit is the charset of octets of which nothing is known (RFC 1428).
const unknown8Bit = "unknown-8bit"

// encodeWords writes text as encoded words of at most 75 octets, of which none cuts a character.
// They can stand everywhere where an encoded word may, phrases included (RFC 2047 section 5).
func encodeWords(charset, text string) []string {
	safe := func(c byte) bool {
		return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte("!*+-/", c) >= 0
	}
	q := 0
	for i := 0; i < len(text); i++ {
		if safe(text[i]) || text[i] == ' ' {
			q++
		} else {
			q += 3
		}
	}
	room := 75 - len("=?"+charset+"?q??=")
	var out []string
	if useQ := q <= (len(text)+2)/3*4; useQ {
		var w strings.Builder
		flush := func() {
			out = append(out, "=?"+charset+"?q?"+w.String()+"?=")
			w.Reset()
		}
		for i := 0; i < len(text); {
			n := runeLen(charset, text[i:])
			var enc strings.Builder
			for _, c := range []byte(text[i : i+n]) {
				switch {
				case safe(c):
					enc.WriteByte(c)
				case c == ' ':
					enc.WriteByte('_')
				default:
					fmt.Fprintf(&enc, "=%02X", c)
				}
			}
			if w.Len()+enc.Len() > room {
				flush()
			}
			w.WriteString(enc.String())
			i += n
		}
		if w.Len() > 0 || len(out) == 0 {
			flush()
		}
		return out
	}
	for room = room / 4 * 3; ; {
		end := 0
		for end < len(text) {
			n := runeLen(charset, text[end:])
			if end+n > room {
				break
			}
			end += n
		}
		out = append(out, "=?"+charset+"?b?"+base64.StdEncoding.EncodeToString([]byte(text[:end]))+"?=")
		if text = text[end:]; text == "" {
			return out
		}
	}
}

func runeLen(charset, s string) int {
	if charset == unknown8Bit {
		return 1
	}
	_, n := utf8.DecodeRuneInString(s)
	return n
}

// encodeText encodes what is not ASCII, as UTF-8, or as unknown-8bit when it is none.
func encodeText(s string) []string {
	if utf8.ValidString(s) {
		return encodeWords("utf-8", s)
	}
	return encodeWords(unknown8Bit, s)
}

// encodeUnstructured makes the words of an unfolded value (RFC 5322 section 3.2.5) ASCII. Words
// that are ASCII stay readable; encoded words among them stay what they are.
func encodeUnstructured(v string) []string {
	in := strings.Split(v, " ")
	var out []string
	isWord := func(s string) bool {
		w, ok := nextWord(s, 0)
		return ok && w.start == 0 && w.end == len(s)
	}
	for i := 0; i < len(in); {
		if isASCII(in[i]) {
			out = append(out, in[i])
			i++
			continue
		}
		// From here to the last word of a run that is not ASCII, together with up to two ASCII words
		// between, so that the line does not fall to pieces: white space between two encoded words would vanish (RFC 2047 section 6.2).
		end := i + 1
		for k := end; k < min(len(in), end+3) && !isWord(in[k]); k++ {
			if !isASCII(in[k]) {
				end = k + 1
			}
		}
		text := strings.Join(in[i:end], " ")
		if i > 0 && isWord(in[i-1]) {
			text = " " + text
		}
		if end < len(in) && isWord(in[end]) {
			text += " "
		}
		out = append(out, encodeText(text)...)
		i = end
	}
	return out
}

// fold joins words to the lines of a field (RFC 5322 section 2.2.3), at most 76
// octets long where there is a space to fold at.
func fold(name string, words []string, nl string) []byte {
	b := []byte(name + ":")
	col := len(b)
	blank := true // nothing but white space in the line: folding there would end the field
	for _, w := range words {
		if col+1+len(w) > 76 && !blank {
			b = append(b, nl...)
			col, blank = 0, true
		}
		b = append(b, ' ')
		b = append(b, w...)
		col += 1 + len(w)
		blank = blank && strings.Trim(w, " \t") == ""
	}
	return append(b, nl...)
}
