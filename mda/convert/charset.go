package convert

import (
	"errors"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/ianaindex"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/encoding/unicode/utf32"
)

// A charset is what a label stands for.
type charset struct {
	enc encoding.Encoding // nil: UTF-8, or us-ascii
	// ascii says that octets below 128 are ASCII wherever they stand.
	ascii bool
	// wide says that most of its characters take several octets, so that base64 is
	// the shorter encoding.
	wide bool
}

var errCharset = errors.New("the charset is not known")

// unlabelled says that a label promises ASCII, or nothing.
func unlabelled(label string) bool {
	switch strings.ToLower(label) {
	case "", "us-ascii", "ascii", "ansi_x3.4-1968", "iso646-us":
		return true
	}
	return false
}

func isUTF8(label string) bool {
	switch strings.ToLower(label) {
	case "utf-8", "utf8", "unicode-1-1-utf-8", "x-unicode20utf8":
		return true
	}
	return false
}

func isUTF7(label string) bool {
	switch strings.ToLower(label) {
	case "utf-7", "utf7", "unicode-1-1-utf-7", "x-unicode20utf7", "csutf7", "csunicode11utf7", "utf-7-imap", "csutf7imap":
		return true
	}
	return false
}

// lookupCharset finds the encoding of a label, as browsers do first (iso-8859-1 is
// windows-1252, its superset, there), then as IANA has it. UTF-7 is not among them, and must
// not be: it hides markup from whoever looks for it. "replacement" of the browsers
// is no charset, but the refusal of one.
func lookupCharset(label string) (charset, error) {
	label = strings.ToLower(strings.TrimSpace(label))
	if isUTF8(label) || unlabelled(label) {
		return charset{ascii: true}, nil
	}
	if len(label) > 40 {
		return charset{}, errCharset
	}
	switch label {
	case "utf-16":
		// RFC 2781 section 4.3: big-endian, unless a byte order mark says otherwise.
		return charset{enc: unicode.UTF16(unicode.BigEndian, unicode.UseBOM), wide: true}, nil
	case "hz-gb-2312", "hz-gb": // the browsers have given it up, mail has it
		return charset{enc: simplifiedchinese.HZGB2312, wide: true}, nil
	case "utf-32":
		return charset{enc: utf32.UTF32(utf32.BigEndian, utf32.UseBOM), wide: true}, nil
	}
	if isUTF7(label) {
		return charset{}, errCharset
	}
	enc, err := htmlindex.Get(label)
	if err != nil {
		enc, err = ianaindex.MIME.Encoding(label)
	}
	if err != nil || enc == nil || enc == encoding.Replacement {
		return charset{}, errCharset
	}
	c := charset{enc: enc, ascii: true}
	name, err := htmlindex.Name(enc)
	if err != nil {
		// Not one of the browsers': it may be anything, EBCDIC as well.
		c.ascii = false
		return c, nil
	}
	switch name {
	case "replacement", "x-user-defined":
		return charset{}, errCharset
	case "utf-8":
		c.enc = nil
	case "utf-16be", "utf-16le", "iso-2022-jp":
		c.ascii, c.wide = false, true
	case "gbk", "gb18030", "big5", "euc-jp", "euc-kr", "shift_jis":
		c.wide = true
	}
	return c, nil
}

// decodeWord decodes the octets of an encoded word or a parameter. It is false when there is nothing to
// be done, because the charset is UTF-8 or ASCII, and when it cannot be
// done without loss.
func decodeWord(label, octets string) (string, bool) {
	label, _, _ = strings.Cut(label, "*") // RFC 2231 section 5: a language
	c, err := lookupCharset(label)
	if err != nil || c.enc == nil {
		return "", false
	}
	s, err := c.enc.NewDecoder().String(octets)
	if err != nil || !utf8.ValidString(s) || strings.ContainsRune(s, utf8.RuneError) {
		return "", false
	}
	return s, true
}
