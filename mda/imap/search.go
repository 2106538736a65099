package imap

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"golang.org/x/text/encoding/htmlindex"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

const (
	maxTexts = 20 // criteria of one SEARCH that read messages: each reads all of them
	maxSets  = 100
	maxKeys  = 500 // all criteria: each message is held against them
)

// Search finds messages (RFC 9051 section 6.4.4). Text is compared without regard to case, decoded from its transfer
// encoding and character set; header fields too.
func (x *session) Search(kind imapserver.NumKind, criteria *imap.SearchCriteria, o *imap.SearchOptions) (*imap.SearchData, error) {
	v, unlock, err := x.selected()
	if err != nil {
		return nil, err
	}
	defer unlock()
	var q *query
	if t, sets, keys := count(criteria); t > maxTexts || sets > maxSets || keys > maxKeys {
		err = no(imap.ResponseCodeLimit, "Too many criteria to look for")
	} else if q, err = v.query(criteria); err != nil {
		return nil, err // BAD
	}
	if o.ReturnSave { // a search that is answered NO leaves nothing behind (RFC 5182 section 2.1)
		v.saved = nil
	}
	if err != nil {
		return nil, err
	}
	var seqs imap.SeqSet
	var uids imap.UIDSet
	data := &imap.SearchData{}
	var first, last imap.UID
	for i, m := range v.msgs {
		if v.gone[m.UID] {
			continue
		}
		if err := x.ctx.Err(); err != nil {
			return nil, x.fail(err)
		}
		c := &candidate{ctx: x.ctx, box: v.box, info: m, index: i}
		ok, err := c.matches(q)
		c.close()
		if errors.Is(err, mailbox.ErrNoMessage) {
			continue // removed this moment
		}
		if err != nil {
			return nil, x.fail(err)
		}
		if !ok {
			continue
		}
		uid, n := imap.UID(m.UID), uint32(i+1)
		if kind == imapserver.NumKindUID {
			n = uint32(m.UID)
		}
		if data.Count == 0 {
			data.Min, first = n, uid
		}
		data.Max, last = n, uid
		data.Count++
		seqs.AddNum(uint32(i + 1))
		uids.AddNum(uid)
	}
	if data.All = imap.NumSet(seqs); kind == imapserver.NumKindUID {
		data.All = uids
	}
	if o.ReturnSave { // RFC 5182 section 2.4
		v.saved = uids
		if !o.ReturnAll && !o.ReturnCount && data.Count > 0 {
			v.saved = nil
			if o.ReturnMin {
				v.saved.AddNum(first)
			}
			if o.ReturnMax {
				v.saved.AddNum(last)
			}
		}
	}
	return data, nil
}

// count counts the criteria that read messages, the sets of messages, and all criteria.
func count(c *imap.SearchCriteria) (texts, sets, keys int) {
	texts, sets = len(c.Header)+len(c.Body)+len(c.Text), len(c.SeqNum)+len(c.UID)
	keys = 1 + texts + sets + len(c.Flag) + len(c.NotFlag)
	add := func(sub *imap.SearchCriteria) {
		t, s, k := count(sub)
		texts, sets, keys = texts+t, sets+s, keys+k
	}
	for i := range c.Not {
		add(&c.Not[i])
	}
	for i := range c.Or {
		add(&c.Or[i][0])
		add(&c.Or[i][1])
	}
	return texts, sets, keys
}

// A query is criteria with the sets of messages resolved.
type query struct {
	*imap.SearchCriteria
	sets [][]span // a message is in all of them
	not  []*query
	or   [][2]*query
}

func (v *view) query(c *imap.SearchCriteria) (*query, error) {
	q := &query{SearchCriteria: c}
	add := func(set imap.NumSet) error {
		list, err := v.spans(set)
		q.sets = append(q.sets, list)
		return err
	}
	for _, s := range c.SeqNum {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	for _, s := range c.UID {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	for i := range c.Not {
		sub, err := v.query(&c.Not[i])
		if err != nil {
			return nil, err
		}
		q.not = append(q.not, sub)
	}
	for i := range c.Or {
		var pair [2]*query
		for j := range pair {
			var err error
			if pair[j], err = v.query(&c.Or[i][j]); err != nil {
				return nil, err
			}
		}
		q.or = append(q.or, pair)
	}
	return q, nil
}

// A candidate is a message that is looked at, opened when it must be.
type candidate struct {
	ctx   context.Context
	box   mailbox.Mailbox
	info  mailbox.MessageInfo
	index int

	body mailbox.Body
	part *part
	deep bool // part has its parts
}

func (c *candidate) close() {
	if c.body != nil {
		c.body.Close()
	}
}

func (c *candidate) open() error {
	if c.body != nil {
		return nil
	}
	body, err := c.box.Body(c.ctx, c.info.UID)
	if err != nil {
		return err
	}
	c.body = body
	c.part, err = scan(body, body.Size(), false)
	return err
}

// look looks into the parts, which the header alone does not need.
func (c *candidate) look() (err error) {
	if !c.deep {
		c.deep = true
		c.part, err = scan(c.body, c.body.Size(), true)
	}
	return err
}

// day is a date without time and zone.
func day(t time.Time) time.Time {
	y, m, d := t.Date()
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
}

func between(t, since, before time.Time) bool {
	t = day(t)
	return (since.IsZero() || !t.Before(day(since))) && (before.IsZero() || t.Before(day(before)))
}

func (c *candidate) matches(q *query) (bool, error) {
	m := c.info
	for _, list := range q.sets {
		if !within(list, c.index) {
			return false, nil
		}
	}
	for _, f := range q.Flag {
		if !hasFlag(m.Flags, f) {
			return false, nil
		}
	}
	for _, f := range q.NotFlag {
		if hasFlag(m.Flags, f) {
			return false, nil
		}
	}
	if !between(m.InternalDate, q.Since, q.Before) || q.Larger > 0 && m.Size <= q.Larger || q.Smaller > 0 && m.Size >= q.Smaller {
		return false, nil
	}
	for _, n := range q.not {
		if ok, err := c.matches(n); ok || err != nil {
			return false, err
		}
	}
	for _, pair := range q.or {
		ok, err := c.matches(pair[0])
		if err == nil && !ok {
			ok, err = c.matches(pair[1])
		}
		if !ok || err != nil {
			return false, err
		}
	}
	if len(q.Header)+len(q.Body)+len(q.Text) == 0 && q.SentSince.IsZero() && q.SentBefore.IsZero() {
		return true, nil
	}
	if err := c.open(); err != nil {
		return false, err
	}
	if !q.SentSince.IsZero() || !q.SentBefore.IsZero() {
		sent, err := mail.ParseDate(c.part.header.Get("Date"))
		if err != nil || !between(sent, q.SentSince, q.SentBefore) {
			return false, nil
		}
	}
	for _, h := range q.Header {
		if !slices.ContainsFunc(c.part.header.Values(h.Key), func(v string) bool { return holds(v, h.Value) }) {
			return false, nil
		}
	}
	if len(q.Body)+len(q.Text) > 0 {
		if err := c.look(); err != nil {
			return false, err
		}
	}
	for _, t := range q.Body {
		if ok, err := c.text(c.part, t, false); !ok || err != nil {
			return false, err
		}
	}
	for _, t := range q.Text {
		if ok, err := c.text(c.part, t, true); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

func hasFlag(flags []mailbox.Flag, f imap.Flag) bool {
	return slices.ContainsFunc(flags, func(g mailbox.Flag) bool { return strings.EqualFold(string(g), string(f)) })
}

// utf8Reader decodes a character set. The package go-message/charset would do it too, but importing that changes
// go-message for the whole program.
func utf8Reader(cs string, r io.Reader) (io.Reader, error) {
	e, err := htmlindex.Get(cs)
	if err != nil {
		return nil, err
	}
	return e.NewDecoder().Reader(r), nil
}

var words = mime.WordDecoder{CharsetReader: utf8Reader}

// holds reports whether a header field's value has a text, as it is or decoded (RFC 2047).
func holds(value, text string) bool {
	text = strings.ToLower(text)
	if strings.Contains(strings.ToLower(value), text) {
		return true
	}
	decoded, err := words.DecodeHeader(value)
	return err == nil && strings.Contains(strings.ToLower(decoded), text)
}

// text looks for a text in the body of a part, and in its header too if it is wanted.
func (c *candidate) text(p *part, text string, header bool) (bool, error) {
	if header && slices.ContainsFunc(p.header.Fields, func(f mailspine.HeaderField) bool {
		return holds(f.Name+": "+f.Value(), text)
	}) {
		return true, nil
	}
	for _, sub := range p.children {
		if ok, err := c.text(sub, text, false); ok || err != nil {
			return ok, err
		}
	}
	if p.message != nil {
		return c.text(p.message, text, true)
	}
	if p.kind != "text" || len(p.children) > 0 {
		return false, nil
	}
	var r io.Reader = io.NewSectionReader(c.body, p.body, p.end-p.body)
	switch strings.ToLower(strings.TrimSpace(p.header.Get("Content-Transfer-Encoding"))) {
	case "base64":
		r = base64.NewDecoder(base64.StdEncoding, r)
	case "quoted-printable":
		r = quotedprintable.NewReader(r)
	}
	if cs := strings.ToLower(p.params["charset"]); cs != "" && cs != "utf-8" && cs != "us-ascii" {
		if cr, err := utf8Reader(cs, r); err == nil {
			r = cr
		}
	}
	return found(c.ctx, r, text)
}

// found looks for a text in a stream, holding as much as 32 KiB and the text. Damage ends the stream.
func found(ctx context.Context, r io.Reader, text string) (bool, error) {
	want := []byte(strings.ToLower(text))
	if len(want) == 0 {
		return true, nil
	}
	// What may be the beginning of the text stays; lower case may have another length.
	keep := 4 * len(want)
	buf := make([]byte, keep+(32<<10))
	have := 0
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := io.ReadFull(r, buf[have:])
		have += n
		if bytes.Contains(bytes.ToLower(buf[:have]), want) {
			return true, nil
		}
		if err != nil {
			// The store's own errors are seen when the message is fetched; here most are damaged encodings.
			return false, nil
		}
		copy(buf, buf[have-keep:have])
		have = keep
	}
}
