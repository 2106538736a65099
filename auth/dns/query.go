package dns

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/miekg/dns"

	"github.com/mailspine/mailspine"
)

// headerLen is the length of a message's header (RFC 1035 section 4.1.1).
const headerLen = 12

// A question is what is asked, apart from how.
type question struct {
	name string // canonical
	typ  mailspine.Type
}

// A query is a question as it goes out.
type query struct {
	question
	wire      []byte // the message
	section   []byte // the question section in it
	exactCase bool   // the reply must repeat the question letter by letter
}

// A manner is how a question is put.
type manner struct {
	udpSize          uint16 // 0: without EDNS
	checkingDisabled bool   // CD: the answer is wanted even if it is bogus
	randomCase       bool
}

// newQuery packs a question with a random ID.
func newQuery(q question, how manner) (*query, error) {
	var id [2]byte
	rand.Read(id[:]) // never fails
	name := q.name + "."
	if how.randomCase {
		name = randomCase(name)
	}
	m := dns.Msg{
		MsgHdr: dns.MsgHdr{
			Id:               binary.BigEndian.Uint16(id[:]),
			RecursionDesired: true,
			// RFC 6840 section 5.7: asks for the AD bit without the signatures.
			AuthenticatedData: true,
			CheckingDisabled:  how.checkingDisabled,
		},
		Question: []dns.Question{{Name: name, Qtype: uint16(q.typ), Qclass: dns.ClassINET}},
	}
	if how.udpSize > 0 {
		m.SetEdns0(how.udpSize, false)
	}
	b, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadName, err)
	}
	// The name takes one octet more than its text: canonicalName lets no escapes
	// through. Type and class follow.
	n := len(name) + 1 + 4
	if q.name == "" {
		n = 1 + 4
	}
	return &query{question: q, wire: b, section: b[headerLen : headerLen+n], exactCase: how.randomCase}, nil
}

// randomCase changes letters to upper case by the toss of a coin, which makes a
// reply harder to guess (draft-vixie-dnsext-dns0x20).
func randomCase(name string) string {
	b := []byte(name)
	coins := make([]byte, len(b))
	rand.Read(coins)
	for i, c := range b {
		if 'a' <= c && c <= 'z' && coins[i]&1 == 1 {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// answers reports whether a message is a reply to q: it has its ID, and
// repeats its question (RFC 5452 section 9.1). Servers that could not read the
// question may leave it out; such a reply says nothing but that.
func (q *query) answers(msg []byte) bool {
	if len(msg) < headerLen || !bytes.Equal(msg[:2], q.wire[:2]) {
		return false
	}
	const qr, opcode = 0x80, 0x78
	if msg[2]&qr == 0 || msg[2]&opcode != 0 {
		return false
	}
	switch binary.BigEndian.Uint16(msg[4:]) {
	case 0:
		rcode := int(msg[3] & 0x0f)
		return rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError
	case 1:
	default:
		return false
	}
	if len(msg) < headerLen+len(q.section) {
		return false
	}
	got := msg[headerLen : headerLen+len(q.section)]
	if q.exactCase {
		return bytes.Equal(got, q.section)
	}
	return equalFold(got, q.section)
}

// equalFold compares question sections, the names without regard to the case of
// ASCII letters. The lengths of labels, at most 63, are no letters.
func equalFold(a, b []byte) bool {
	n := len(a) - 4
	if n < 0 || len(a) != len(b) || !bytes.Equal(a[n:], b[n:]) {
		return false
	}
	for i := range n {
		x, y := a[i], b[i]
		if 'A' <= x && x <= 'Z' {
			x += 'a' - 'A'
		}
		if 'A' <= y && y <= 'Z' {
			y += 'a' - 'A'
		}
		if x != y {
			return false
		}
	}
	return true
}
