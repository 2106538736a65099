package fbl

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// A token is the local part of a sealed return path, and the value of the header
// field Header. It binds one message to one recipient for one Scope:
//
//	octets
//	1   version, and which key: its hint
//	5   scope: a keyed hash of tenant, stream and sender
//	2   the day it was made, since 2024-01-01
//	16  the message: its ID where that was made by mailspine.NewMsgID, else a hash of it
//	4   recipient: a keyed hash of the address
//	10  HMAC-SHA256 over the 28 octets before
//
// in base32 (RFC 4648) without padding and in lower case: 61 characters, and in front of them "b-" in a return path: 63 of
// the 64 octets that a local part may have.
const (
	tokenSize  = 38
	tokenMAC   = 10
	tokenText  = 61
	pathPrefix = "b-"

	// version is in the upper bits of the first octet; the lower four are the key's hint. In the
	// next version of tokens it will be another.
	version     = 1 << 4
	versionMask = 0xf0
)

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// The errors of tokens, all of which say that nothing that a token claims is to be believed.
var (
	// ErrForged is for a token that none of the keys made, or that is damaged.
	ErrForged = errors.New("fbl: the token is forged or damaged")
	// ErrExpired is for one older than Tokens.MaxAge.
	ErrExpired = errors.New("fbl: the token is too old")
	// ErrNoScope is for a token of ours whose Scope is not known any more.
	ErrNoScope = errors.New("fbl: the token's scope is not known")
)

// MinKey is the least length of a key of Tokens, in octets.
const MinKey = 32

// DefaultMaxAge is how long tokens hold, unless Tokens.MaxAge says otherwise. Complaints come weeks late.
const DefaultMaxAge = 60 * 24 * time.Hour

// epoch is day 0 of tokens. Two octets of days last until the year 2203.
var epoch = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).Unix() / 86400

// Tokens makes and opens tokens. It is a mailspine.ReturnPaths. Its fields must not change once it is in
// use; it is safe for concurrent use then.
type Tokens struct {
	// Keys are secrets of at least MinKey octets, at most 16 of them. The first makes tokens, all open them: to
	// change keys, put the new one in front, and remove the old one when MaxAge has passed. Required.
	Keys [][]byte
	// Domain is the domain of the return paths, such as bounces.example.org, whose mail comes to an
	// Intake. Only Seal needs it.
	Domain string
	// Scopes remembers what the short name of a scope in a token stands for. Required.
	Scopes Scopes
	// MaxAge is how long a token holds, in whole days; 0: DefaultMaxAge.
	MaxAge time.Duration

	Now func() time.Time // nil: time.Now
}

var _ mailspine.ReturnPaths = (*Tokens)(nil)

// Validate says which field is wrong.
func (t *Tokens) Validate() error {
	if len(t.Keys) == 0 || len(t.Keys) > 16 {
		return fmt.Errorf("fbl: Tokens.Keys has %d keys, not 1 to 16", len(t.Keys))
	}
	for i, k := range t.Keys {
		if len(k) < MinKey {
			return fmt.Errorf("fbl: Tokens.Keys[%d] has %d octets, under %d", i, len(k), MinKey)
		}
	}
	if t.Scopes == nil {
		return errors.New("fbl: Tokens.Scopes is nil")
	}
	if t.Domain != "" {
		if err := (mailspine.Address{Local: "x", Domain: t.Domain}).Validate(); err != nil {
			return fmt.Errorf("fbl: Tokens.Domain: %w", err)
		}
	}
	return nil
}

func (t *Tokens) today() int64 {
	now := time.Now()
	if t.Now != nil {
		now = t.Now()
	}
	return now.Unix()/86400 - epoch
}

// keyed is HMAC-SHA256 under a key, for one use.
func keyed(key []byte, use string, parts ...string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(use))
	for _, p := range parts {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}

// hint tells keys apart without trying them all; it proves nothing.
func hint(key []byte) byte { return keyed(key, "hint")[0] & ^byte(versionMask) }

// normal is how addresses are compared: what relays change does not count.
func normal(a mailspine.Address) string {
	domain, err := a.ASCIIDomain()
	if err != nil {
		domain = lower(a.Domain)
	}
	return lower(a.Local) + "@" + domain
}

// lower changes ASCII letters only.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

func recipientHash(key []byte, a mailspine.Address) []byte {
	return keyed(key, "recipient", normal(a))[:4]
}

// messageBits packs an ID of mailspine.NewMsgID into its 16 octets; others become a hash.
func messageBits(id mailspine.MsgID) (b [16]byte) {
	if unpacked, ok := unpackID(id); ok {
		return unpacked
	}
	sum := sha256.Sum256([]byte(id))
	copy(b[:], sum[:])
	return b
}

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

func unpackID(id mailspine.MsgID) (b [16]byte, ok bool) {
	if len(id) != 26 || id[0] > '7' {
		return b, false
	}
	var acc uint64
	bits, n := 0, 0
	for i := range 26 {
		v := strings.IndexByte(crockford, id[i])
		if v < 0 {
			return b, false
		}
		acc = acc<<5 | uint64(v)
		bits += 5
		if i == 0 {
			bits = 3 // 130 bits of text for 128
		}
		for bits >= 8 {
			bits -= 8
			b[n] = byte(acc >> bits)
			n++
		}
		acc &= 1<<bits - 1
	}
	return b, true
}

// packID writes 16 octets as mailspine.NewMsgID does.
func packID(b [16]byte) mailspine.MsgID {
	var out [26]byte
	var acc uint64
	bits, n := 2, 0
	for _, c := range b {
		acc = acc<<8 | uint64(c)
		bits += 8
		for bits >= 5 {
			bits -= 5
			out[n] = crockford[acc>>bits&31]
			n++
		}
		acc &= 1<<bits - 1
	}
	return mailspine.MsgID(out[:])
}

// Token makes the token of a copy of a message to one recipient, sent by env.From. Its scope is remembered
// before it returns.
func (t *Tokens) Token(ctx context.Context, env *mailspine.Envelope, rcpt mailspine.Address) (string, error) {
	if err := t.Validate(); err != nil {
		return "", err
	}
	key := t.Keys[0]
	scope := Scope{Tenant: env.Tenant, Stream: env.Stream, Sender: env.From}
	if err := scope.validate(); err != nil {
		return "", err
	}
	id, err := t.remember(ctx, key, scope)
	if err != nil {
		return "", fmt.Errorf("fbl: remember the scope: %w", err)
	}
	day := t.today()
	if day < 0 || day > 1<<16-1 {
		return "", errors.New("fbl: the clock is wrong")
	}
	b := make([]byte, 0, tokenSize)
	b = append(b, version|hint(key))
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(day))
	msg := messageBits(env.ID)
	b = append(b, msg[:]...)
	b = append(b, recipientHash(key, rcpt)...)
	b = append(b, keyed(key, "token", string(b))[:tokenMAC]...)
	return encoding.EncodeToString(b), nil
}

// maxNames is how many names a scope has, if those before are taken.
const maxNames = 4

// remember finds a name for a scope: the first that no other scope has.
func (t *Tokens) remember(ctx context.Context, key []byte, s Scope) (id ScopeID, err error) {
	for n := range maxNames {
		id = s.id(key, n)
		if err = t.Scopes.Remember(ctx, id, s); !errors.Is(err, ErrScopeTaken) {
			break
		}
	}
	return id, err
}

// An Opened is what a token of ours says.
type Opened struct {
	Scope   Scope
	Message mailspine.MsgID // as far as it was made by mailspine.NewMsgID; otherwise 26 characters that stand for it
	Day     time.Time       // on which it was made, in UTC

	recipient []byte
	key       []byte
}

// For reports whether the token was made for a recipient. It compares keyed hashes: the token
// does not hold the address.
func (o *Opened) For(rcpt mailspine.Address) bool {
	return subtle.ConstantTimeCompare(recipientHash(o.key, rcpt), o.recipient) == 1
}

// OpenToken opens a token, in any case. The error is ErrForged, ErrExpired or ErrNoScope, or of
// Scopes, which is temporary.
func (t *Tokens) OpenToken(ctx context.Context, token string) (*Opened, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	o, id, err := t.verify(token)
	if err != nil {
		return nil, err
	}
	scope, err := t.Scopes.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	o.Scope = scope
	return o, nil
}

// verify does all that needs no Scopes.
func (t *Tokens) verify(token string) (*Opened, ScopeID, error) {
	var id ScopeID
	if len(token) != tokenText {
		return nil, id, ErrForged
	}
	b, err := encoding.DecodeString(lower(token))
	// The last character has a bit that means nothing, and must be as we write it.
	if err != nil || len(b) != tokenSize || encoding.EncodeToString(b) != lower(token) || b[0]&versionMask != version {
		return nil, id, ErrForged
	}
	body, mac := b[:tokenSize-tokenMAC], b[tokenSize-tokenMAC:]
	var key []byte
	for _, k := range t.Keys {
		if hint(k) == b[0]&^byte(versionMask) && hmac.Equal(keyed(k, "token", string(body))[:tokenMAC], mac) {
			key = k
			break
		}
	}
	if key == nil {
		return nil, id, ErrForged
	}
	copy(id[:], body[1:6])
	day := int64(binary.BigEndian.Uint16(body[6:8]))
	max := t.MaxAge
	if max <= 0 {
		max = DefaultMaxAge
	}
	if t.today()-day > int64(max/(24*time.Hour)) {
		return nil, id, ErrExpired
	}
	var msg [16]byte
	copy(msg[:], body[8:24])
	return &Opened{
		Message: packID(msg), Day: time.Unix((day+epoch)*86400, 0).UTC(),
		recipient: bytes.Clone(body[24:28]), key: key,
	}, id, nil
}

// Seal returns the reverse-path for a copy of a message to one recipient.
func (t *Tokens) Seal(env *mailspine.Envelope, rcpt mailspine.Recipient) (mailspine.Address, error) {
	if t.Domain == "" {
		return mailspine.Address{}, errors.New("fbl: Tokens.Domain is empty")
	}
	token, err := t.Token(context.Background(), env, rcpt.Address)
	if err != nil {
		return mailspine.Address{}, err
	}
	return mailspine.Address{Local: pathPrefix + token, Domain: t.Domain}, nil
}

// split returns the token of a sealed return path; ok is false for an address that is none.
func (t *Tokens) split(a mailspine.Address) (token string, ok bool) {
	if t.Domain == "" {
		return "", false
	}
	ours, err := mailspine.ASCIIDomain(t.Domain)
	theirs, err2 := a.ASCIIDomain()
	if err != nil || err2 != nil || ours != theirs || len(a.Local) != len(pathPrefix)+tokenText {
		return "", false
	}
	return strings.CutPrefix(lower(a.Local), pathPrefix)
}

// OpenPath opens a sealed return path. ok is false for an address that is none.
func (t *Tokens) OpenPath(ctx context.Context, a mailspine.Address) (o *Opened, ok bool, err error) {
	token, ok := t.split(a)
	if !ok {
		return nil, false, nil
	}
	o, err = t.OpenToken(ctx, token)
	return o, true, err
}

// Open takes a sealed return path apart. The Recipient is the keyed hash of the address, in base32.
func (t *Tokens) Open(a mailspine.Address) (info mailspine.ReturnPath, ok bool, err error) {
	o, ok, err := t.OpenPath(context.Background(), a)
	if !ok || err != nil {
		return info, ok, err
	}
	return mailspine.ReturnPath{
		ID: o.Message, Tenant: o.Scope.Tenant, Stream: o.Scope.Stream,
		Recipient: encoding.EncodeToString(o.recipient), Sealed: o.Day,
	}, true, nil
}
