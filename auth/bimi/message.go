package bimi

import (
	"io"
	"mime"
	"net/mail"
	"strings"

	"github.com/mailspine/mailspine"
)

// A Message is what BIMI reads in the header of a message. The zero Message has no author.
type Message struct {
	// Author is the only address in From; zero: there is none, or several.
	Author mailspine.Address
	// Selector is that of the BIMI-Selector field, in lower case; "": there is no such field, or it cannot be read,
	// or there are several.
	Selector string
}

// maxFrom bounds the From field, in octets.
const maxFrom = 16 << 10

// Read reads a header. Section "Authentication Requirements": there is to be one
// From field with one address.
func Read(h *mailspine.Header) Message {
	var m Message
	var from, sel []string
	for _, f := range h.Fields {
		switch {
		case f.Is("From") && len(f.Raw) <= maxFrom:
			from = append(from, f.Value())
		case f.Is("From"):
			return Message{}
		case f.Is("BIMI-Selector"):
			sel = append(sel, f.Value())
		}
	}
	if len(from) == 1 {
		// A name in a strange charset does not matter.
		p := mail.AddressParser{WordDecoder: &mime.WordDecoder{
			CharsetReader: func(_ string, r io.Reader) (io.Reader, error) { return r, nil }}}
		if list, err := p.ParseList(from[0]); err == nil && len(list) == 1 {
			a := list[0].Address
			at := strings.LastIndexByte(a, '@')
			m.Author = mailspine.Address{Local: a[:max(at, 0)], Domain: a[at+1:]}
		}
	}
	if len(sel) == 1 {
		m.Selector, _ = ParseSelector(sel[0])
	}
	return m
}
