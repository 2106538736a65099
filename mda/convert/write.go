package convert

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/mailspine/mailspine"
)

// A capped writer ends with an error at a number of octets.
type capped struct {
	w    io.Writer
	left int64
}

func (c *capped) Write(p []byte) (int, error) {
	if c.left -= int64(len(p)); c.left < 0 {
		return 0, ErrTooLarge
	}
	return c.w.Write(p)
}

// writeTo writes the derived message. It is at most six times as large as the original, and 1 MiB.
func (j *job) writeTo(w io.Writer) error {
	j.out = bufio.NewWriterSize(&capped{w, 6*j.src.msg.Size() + 1<<20}, 32<<10)
	err := j.entity(j.root)
	if j.src.err != nil {
		return j.src.err
	}
	if err != nil {
		return err
	}
	return j.out.Flush()
}

func (j *job) copy(start, end int64) error {
	if start >= end {
		return nil
	}
	r, err := j.src.section(start, end)
	if err != nil {
		return err
	}
	_, err = io.Copy(j.out, r)
	return err
}

// entity writes a node with its header.
func (j *job) entity(n *node) error {
	if !n.changed {
		return j.copy(n.start, n.end)
	}
	if n.first != nil {
		return j.withView(n)
	}
	if n.act == collapse {
		// The fields that describe the body are those of the part, the others those of the whole.
		j.fields(n.head, func(f mailspine.HeaderField) bool { return !isContent(f) })
		c := n
		for c.act == collapse {
			c = c.only
		}
		j.fields(c.head, isContent)
		j.out.WriteString(j.nl)
		return j.body(c)
	}
	j.fields(n.head, nil)
	j.out.WriteString(j.nl)
	return j.body(n)
}

func (j *job) fields(head []mailspine.HeaderField, which func(mailspine.HeaderField) bool) {
	for _, f := range head {
		if which == nil || which(f) {
			j.out.Write(withEnd(f.Raw, j.nl))
		}
	}
}

// withView writes a multipart/alternative of a view and the node.
func (j *job) withView(n *node) error {
	// Of all octets of the message, so that no message can have it in it.
	h := sha256.Sum256(append(j.sum[:], n.path...))
	boundary := "=_mailspine_" + hex.EncodeToString(h[:16])
	j.fields(n.head, func(f mailspine.HeaderField) bool { return !isContent(f) })
	fmt.Fprintf(j.out, "Content-Type: multipart/alternative;%[1]s boundary=\"%[2]s\"%[1]s%[1]s--%[2]s%[1]s"+
		"Content-Type: text/plain; charset=utf-8%[1]sContent-Transfer-Encoding: %[3]s%[1]s%[1]s", j.nl, boundary, n.first.htmlOut)
	if err := j.view(n.first); err != nil {
		return err
	}
	fmt.Fprintf(j.out, "%[1]s--%[2]s%[1]s", j.nl, boundary)
	j.fields(n.head, isContent)
	j.out.WriteString(j.nl)
	if err := j.body(n); err != nil {
		return err
	}
	fmt.Fprintf(j.out, "%[1]s--%[2]s--%[1]s", j.nl, boundary)
	return nil
}

// body writes the body of a node.
func (j *job) body(n *node) error {
	switch {
	case n.kind == embedded:
		return j.entity(n.children[0])
	case n.kind == multi:
		return j.parts(n)
	case n.act == view:
		return j.view(n)
	case n.act == recode, n.act == encode:
		return j.recode(n)
	}
	return j.copy(n.body, n.end)
}

func (j *job) parts(n *node) error {
	if !n.noEdges {
		if err := j.copy(n.body, n.firstDelim); err != nil {
			return err
		}
	}
	for _, c := range n.children {
		if c.act == drop {
			continue
		}
		j.out.WriteString("--" + n.boundary + j.nl)
		if err := j.entity(c); err != nil {
			return err
		}
		j.out.WriteString(j.nl)
	}
	j.out.WriteString("--" + n.boundary + "--")
	epilogue := !n.noEdges && n.closeDelim < n.end
	if epilogue || n.parent == nil {
		j.out.WriteString(j.nl)
	}
	if epilogue {
		return j.copy(n.closeDelim, n.end)
	}
	return nil
}

// decoded returns a reader of a leaf's text in UTF-8.
func (j *job) decoded(n *node, c charset) (io.Reader, error) {
	r, err := j.src.section(n.body, n.end)
	if err == nil {
		r, err = decoder(n.encoding, r)
	}
	if err == nil && c.enc != nil {
		r = c.enc.NewDecoder().Reader(r)
	}
	return r, err
}

// recode writes a leaf in another encoding, and in UTF-8 where that was decided.
func (j *job) recode(n *node) error {
	r, err := j.decoded(n, n.from)
	if err != nil {
		return err
	}
	return j.encoded(n.out, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	})
}

// view writes the text view of an HTML leaf.
func (j *job) view(n *node) error {
	r, err := j.decoded(n, n.html)
	if err != nil {
		return err
	}
	return j.encoded(n.htmlOut, func(w io.Writer) error { return textView(w, r, j.nl) })
}

func (j *job) encoded(encoding string, write func(io.Writer) error) error {
	w := encoder(encoding, j.nl, j.out)
	if err := write(w); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if encoding == base64Encoding {
		_, err := j.out.WriteString(j.nl)
		return err
	}
	return nil
}
