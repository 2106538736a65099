package convert

import (
	"bytes"
	"io"
	"unicode/utf8"

	"golang.org/x/text/encoding"

	htmlcharset "golang.org/x/net/html/charset"
)

// An exam is what the decoded octets of a leaf are like.
type exam struct {
	damage error // why they could not be decoded; nil: they could
	size   int64
	high   int64 // octets over 127
	utf8   bool  // they are UTF-8
	blank  bool  // nothing but white space
	armour bool  // PGP's, so that a signature may cover them
	head   []byte
}

const examHead = 1024 // as far as browsers look for a charset

var armour = []byte("-----BEGIN PGP ")

// examine reads a leaf through its transfer encoding. Its error is of the reader.
func (j *job) examine(n *node) (*exam, error) {
	if n.exam != nil {
		return n.exam, nil
	}
	x := &exam{utf8: true, blank: true}
	n.exam = x
	sec, err := j.src.section(n.body, n.end)
	if err != nil {
		return nil, err
	}
	r, err := decoder(n.encoding, sec)
	if err != nil {
		x.damage = err
		return x, nil
	}
	buf := make([]byte, 32<<10)
	kept := 0            // what of the last chunk is looked at again
	tail := []byte{'\n'} // so that the first line is one as well
	for {
		n, err := r.Read(buf[kept:])
		chunk := buf[kept : kept+n]
		if len(x.head) < examHead {
			x.head = append(x.head, chunk[:min(len(chunk), examHead-len(x.head))]...)
		}
		x.size += int64(n)
		for _, c := range chunk {
			if c >= 0x80 {
				x.high++
			}
			x.blank = x.blank && (c == ' ' || '\t' <= c && c <= '\r')
		}
		if !x.armour {
			tail = append(tail, chunk...)
			x.armour = bytes.Contains(tail, append([]byte{'\n'}, armour...))
			tail = append(tail[:0], tail[max(0, len(tail)-len(armour)):]...)
		}
		chunk = buf[:kept+n]
		end := len(chunk)
		if err == nil { // a rune at the end may go on
			for k := end - 1; k >= 0 && k >= end-utf8.UTFMax; k-- {
				if utf8.RuneStart(chunk[k]) {
					if !utf8.FullRune(chunk[k:]) {
						end = k
					}
					break
				}
			}
		}
		x.utf8 = x.utf8 && utf8.Valid(chunk[:end])
		kept = copy(buf, chunk[end:])
		if j.src.err != nil {
			return nil, j.src.err
		}
		if err == io.EOF {
			return x, nil
		}
		if err != nil {
			x.damage = err
			return x, nil
		}
	}
}

// htmlCharset returns the charset of an HTML document: what its label says, otherwise what a
// browser would find. It is false when nobody should guess.
func htmlCharset(label string, x *exam) (charset, bool) {
	if isUTF8(label) {
		return charset{ascii: true}, true
	}
	if !unlabelled(label) {
		c, err := lookupCharset(label)
		if err == nil {
			return c, true
		}
		if isUTF7(label) {
			return charset{}, false
		}
	}
	enc, name, _ := htmlcharset.DetermineEncoding(x.head, "")
	if enc == nil || enc == encoding.Nop || name == "windows-1252" && x.utf8 {
		return charset{ascii: true}, true
	}
	c, err := lookupCharset(name)
	return c, err == nil
}
