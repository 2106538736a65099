package smtpclient

import (
	"bufio"
	"errors"
	"io"
	"slices"
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

// A Reply is one reply of a server (RFC 5321 section 4.2). The zero Reply is none.
type Reply struct {
	Code     int                    // 200 to 599
	Enhanced mailspine.EnhancedCode // zero: none, or one that contradicts Code
	Lines    []string               // the text without codes, as it came: not fit to be shown; see Message
}

// readReply reads one reply. It consumes at most maxReplySize octets and
// maxReplyLines lines; its time is bounded by the deadline of the connection, which
// holds for the whole reply, so that dripping it does not help. size is the number of octets that were
// consumed. Errors are *ProtocolError, or those of the reader (io.EOF if not one octet came).
func readReply(br *bufio.Reader, wire func(line string)) (r Reply, size int, err error) {
	for n := 0; ; n++ {
		line, err := br.ReadSlice('\n')
		size += len(line)
		switch {
		case err == bufio.ErrBufferFull:
			return Reply{}, size, protocolErrorf("a reply line of over %d octets", maxReplyLine)
		case err == io.EOF && size > 0:
			return Reply{}, size, io.ErrUnexpectedEOF
		case err != nil:
			return Reply{}, size, err
		case n >= maxReplyLines || size > maxReplySize:
			return Reply{}, size, protocolErrorf("a reply of over %d lines or %d octets", maxReplyLines, maxReplySize)
		}
		text := strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r")
		if wire != nil {
			wire(Clean(text))
		}
		code, text, more, err := parseReplyLine(text)
		if err != nil {
			return Reply{}, size, err
		}
		// RFC 5321 section 4.2.1: the code of every line is the same.
		if n > 0 && code != r.Code {
			return Reply{}, size, protocolErrorf("the lines of a reply have different codes, %d and %d", r.Code, code)
		}
		r.Code = code
		r.Lines = append(r.Lines, text)
		if !more {
			break
		}
	}
	r.splitEnhanced()
	return r, size, nil
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
func (r *Reply) splitEnhanced() {
	word, _, _ := strings.Cut(r.Lines[0], " ")
	if len(word) < len("2.0.0") || word[1] != '.' {
		return // as most texts begin; an error costs more
	}
	c, err := mailspine.ParseEnhancedCode(word)
	if err != nil || c[0] != r.Code/100 {
		return
	}
	r.Enhanced = c
	for i, l := range r.Lines {
		if rest, ok := strings.CutPrefix(l, word); ok && (rest == "" || rest[0] == ' ') {
			r.Lines[i] = strings.TrimPrefix(rest, " ")
		}
	}
}

// goodbye is the code of the reply to QUIT (RFC 5321 section 4.2.3). As an answer to anything else it says that the
// server goes, and never that it took something.
const goodbye = 221

// brief returns the lines that Message and String need, for a reply that is kept: at most maxReplyText octets and a line more.
func (r Reply) brief() []string {
	n := 0
	for i, l := range r.Lines {
		if n += len(l); n > maxReplyText {
			return slices.Clone(r.Lines[:i+1])
		}
	}
	if len(r.Lines) > maxBriefLines {
		return slices.Clone(r.Lines[:maxBriefLines])
	}
	return r.Lines
}

// maxBriefLines bounds the lines that are kept; they may be empty.
const maxBriefLines = 50

// OK reports whether the reply says yes: its code is 2yz.
func (r Reply) OK() bool { return r.Code/100 == 2 }

// Refusal reports whether the reply says no, for now (4yz) or for good (5yz).
func (r Reply) Refusal() bool { return r.Code/100 == 4 || r.Code/100 == 5 }

// Message is the text for people: lines joined by LF, control characters replaced, at most 1,000 octets.
func (r Reply) Message() string { return r.join("\n") }

// String is the reply in one line, as in mailspine.Receipt: control characters replaced, at most 1,000 octets.
func (r Reply) String() string {
	s := strconv.Itoa(r.Code)
	if !r.Enhanced.IsZero() {
		s += " " + r.Enhanced.String()
	}
	if text := r.join(" "); text != "" {
		s += " " + text
	}
	return cut(s, maxReplyText)
}

func (r Reply) join(sep string) string {
	var b strings.Builder
	for i, l := range r.Lines {
		if i > 0 {
			b.WriteString(sep)
		}
		b.WriteString(Clean(l))
		if b.Len() > maxReplyText {
			break
		}
	}
	return strings.TrimSpace(cut(b.String(), maxReplyText))
}

// Clean makes a stranger's text safe for terminals, logs and reports: control
// characters (C1 and the separators of lines included) and what is not UTF-8 become '?'.
func Clean(s string) string {
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
	var p *ProtocolError
	return errors.As(err, &p)
}
