package mta

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/mailspine/mailspine"
)

// The bounds on what a server may say at once. RFC 5321 section 4.5.3.1.5 has
// 512 octets for a reply line; real servers exceed it.
const (
	maxReplyLine  = 4096 // octets, with the line end; also the size of the read buffer
	maxReplyLines = 200  // Postfix's EHLO has about 12, a talkative refusal 10
	maxReplySize  = 64 << 10
	maxReplyText  = 1000 // octets of text that are kept for people
)

// A reply is one reply of a server (RFC 5321 section 4.2).
type reply struct {
	code     int                    // 200 to 599
	enhanced mailspine.EnhancedCode // zero: none, or one that contradicts code
	lines    []string               // the text without codes, as it came
}

// A protocolError says how a server broke the rules. Its text is ours, not the server's.
type protocolError struct{ rule string }

func (e *protocolError) Error() string { return "protocol error: " + e.rule }

func protocolErrorf(format string, args ...any) error {
	return &protocolError{fmt.Sprintf(format, args...)}
}

// readReply reads one reply. It consumes at most maxReplySize octets and
// maxReplyLines lines; its time is bounded by the deadline of the connection, which
// holds for the whole reply, so that dripping it does not help. Errors are
// *protocolError, or those of the reader (io.EOF if not one octet came).
func readReply(br *bufio.Reader, wire func(line string)) (reply, error) {
	var r reply
	size := 0
	for n := 0; ; n++ {
		line, err := br.ReadSlice('\n')
		size += len(line)
		switch {
		case err == bufio.ErrBufferFull:
			return reply{}, protocolErrorf("a reply line of over %d octets", maxReplyLine)
		case err == io.EOF && size > 0:
			return reply{}, io.ErrUnexpectedEOF
		case err != nil:
			return reply{}, err
		case n >= maxReplyLines || size > maxReplySize:
			return reply{}, protocolErrorf("a reply of over %d lines or %d octets", maxReplyLines, maxReplySize)
		}
		text := strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r")
		if wire != nil {
			wire(clean(text))
		}
		code, text, more, err := parseReplyLine(text)
		if err != nil {
			return reply{}, err
		}
		// RFC 5321 section 4.2.1: the code of every line is the same.
		if n > 0 && code != r.code {
			return reply{}, protocolErrorf("the lines of a reply have different codes, %d and %d", r.code, code)
		}
		r.code = code
		r.lines = append(r.lines, text)
		if !more {
			break
		}
	}
	r.splitEnhanced()
	return r, nil
}

// parseReplyLine takes apart one line without its end: three digits, then a
// space or a hyphen and text, or nothing (RFC 5321 section 4.2).
func parseReplyLine(s string) (code int, text string, more bool, err error) {
	if len(s) < 3 || s[0] < '2' || s[0] > '5' || s[1] < '0' || s[1] > '9' || s[2] < '0' || s[2] > '9' {
		return 0, "", false, protocolErrorf("a reply line begins with three digits, the first from 2 to 5")
	}
	code, _ = strconv.Atoi(s[:3])
	if len(s) == 3 {
		return code, "", false, nil
	}
	switch s[3] {
	case ' ':
		return code, s[4:], false, nil
	case '-':
		return code, s[4:], true, nil
	}
	return 0, "", false, protocolErrorf("a space or a hyphen follows the code of a reply line")
}

// splitEnhanced moves the enhanced code from the text to its field. It stands
// at the start of every line (RFC 2034 section 4); its class is the reply's, and one
// that is not is left in the text and not believed.
func (r *reply) splitEnhanced() {
	word, _, _ := strings.Cut(r.lines[0], " ")
	c, err := mailspine.ParseEnhancedCode(word)
	if err != nil || c[0] != r.code/100 {
		return
	}
	r.enhanced = c
	for i, l := range r.lines {
		if rest, ok := strings.CutPrefix(l, word); ok && (rest == "" || rest[0] == ' ') {
			r.lines[i] = strings.TrimPrefix(rest, " ")
		}
	}
}

func (r reply) ok() bool { return r.code/100 == 2 }

// refusal reports whether the reply says no, for now or for good.
func (r reply) refusal() bool { return r.code/100 == 4 || r.code/100 == 5 }

// message is the text for people, lines joined by LF, cleaned and cut.
func (r reply) message() string { return r.join("\n") }

// String is the reply in one line, as in Receipt.Reply.
func (r reply) String() string {
	s := strconv.Itoa(r.code)
	if !r.enhanced.IsZero() {
		s += " " + r.enhanced.String()
	}
	if text := r.join(" "); text != "" {
		s += " " + text
	}
	return cut(s, maxReplyText)
}

func (r reply) join(sep string) string {
	var b strings.Builder
	for i, l := range r.lines {
		if i > 0 {
			b.WriteString(sep)
		}
		b.WriteString(clean(l))
		if b.Len() > maxReplyText {
			break
		}
	}
	return strings.TrimSpace(cut(b.String(), maxReplyText))
}

// clean makes a stranger's text safe for terminals, logs and reports: control
// characters (C1 and the separators of lines included) and what is not UTF-8 become '?'.
func clean(s string) string {
	ok := true
	for i := 0; i < len(s) && ok; i++ {
		ok = s[i] >= 0x20 && s[i] < 0x7f
	}
	if ok {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r < 0x20, r >= 0x7f && r < 0xa0, r == utf8.RuneError,
			r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f:
			return '?' // the ranges above 0x2000 break lines or turn the direction of text
		}
		return r
	}, s)
}

// cut shortens s to at most n octets without cutting a character in two.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// isProtocol reports whether err is the server's breach of the rules.
func isProtocol(err error) bool {
	var p *protocolError
	return errors.As(err, &p)
}
