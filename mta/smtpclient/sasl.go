package smtpclient

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/emersion/go-sasl"
	"github.com/xdg-go/scram"
)

// login is LOGIN, which no RFC has: two challenges, whose texts differ from server to server (go-sasl's client wants
// one of them).
type login struct{ answers []string }

var _ sasl.Client = (*login)(nil)

func (l *login) Start() (mech string, ir []byte, err error) { return "LOGIN", nil, nil }

func (l *login) Next([]byte) ([]byte, error) {
	if len(l.answers) == 0 {
		return nil, protocolErrorf("a third challenge of LOGIN")
	}
	a := l.answers[0]
	l.answers = l.answers[1:]
	return []byte(a), nil
}

// bearer is OAUTHBEARER (RFC 7628) or XOAUTH2 (Google's, which Microsoft has too).
type bearer struct {
	mech, user, token string
	said              string // why the token is refused, cleaned
}

var _ sasl.Client = (*bearer)(nil)

func (b *bearer) Start() (mech string, ir []byte, err error) {
	if b.token == "" || strings.ContainsFunc(b.token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return b.mech, nil, errors.New("the token is empty, or has what no token has")
	}
	if b.mech == "XOAUTH2" {
		return b.mech, []byte("user=" + b.user + "\x01auth=Bearer " + b.token + "\x01\x01"), nil
	}
	gs2 := "n,,"
	if b.user != "" {
		gs2 = "n,a=" + strings.NewReplacer("=", "=3D", ",", "=2C").Replace(b.user) + ","
	}
	return b.mech, []byte(gs2 + "\x01auth=Bearer " + b.token + "\x01\x01"), nil
}

// Next answers the error that comes as a challenge (RFC 7628 section 3.2.3); then comes the refusal.
func (b *bearer) Next(challenge []byte) ([]byte, error) {
	if b.said != "" {
		return nil, protocolErrorf("a second challenge of %s", b.mech)
	}
	b.said = cut(Clean(string(challenge)), maxReplyText)
	if b.said == "" {
		b.said = "no reason was given"
	}
	if b.mech == "XOAUTH2" {
		return nil, nil
	}
	return []byte{1}, nil
}

// The bounds on the iterations that a server may ask for. RFC 7677 section 4: at least 4,096. The upper bound is about a
// second of work.
const (
	minIterations = 4096
	maxIterations = 3_000_000
)

// scramClient is SCRAM-SHA-256 or SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677).
type scramClient struct {
	mech string
	conv *scram.ClientConversation
	step int
}

var _ sasl.Client = (*scramClient)(nil)

func newSCRAM(c *Client, cred *Credentials, mech string) (*scramClient, error) {
	return newSCRAMConversation(c, cred, mech, nil)
}

// newSCRAMConversation has the nonce of a test; nil: a random one.
func newSCRAMConversation(c *Client, cred *Credentials, mech string, nonce func() string) (*scramClient, error) {
	identity := cred.Identity
	if identity == cred.Username {
		identity = ""
	}
	client, err := scram.SHA256.NewClient(cred.Username, cred.Password, identity)
	if err != nil {
		return nil, fmt.Errorf("prepare the credentials: %w", err)
	}
	client.WithMinIterations(minIterations)
	if nonce != nil {
		client.WithNonceGenerator(nonce)
	}
	s := &scramClient{mech: mech}
	state, secure := c.TLS()
	switch {
	case mech == "SCRAM-SHA-256-PLUS":
		bind := scram.NewTLSServerEndpointBinding
		if state.Version >= 0x0304 { // TLS 1.3, where nothing else is defined
			bind = scram.NewTLSExporterBinding
		}
		cb, err := bind(&state)
		if err != nil {
			return nil, err
		}
		s.conv = client.NewConversationWithChannelBinding(cb)
	case secure && !c.offersPLUS() && (cred.Mechanisms == nil || slices.Contains(cred.Mechanisms, "SCRAM-SHA-256-PLUS")):
		// RFC 5802 section 6: we could, and the server seems not to. If it could too, somebody took the offer away.
		s.conv = client.NewConversationAdvertisingChannelBinding()
	default:
		s.conv = client.NewConversation()
	}
	return s, nil
}

// offersPLUS reports whether the server offers channel binding. A client that has none for this connection then says that it has
// none: a server takes the contrary for the work of an attacker (RFC 5802 section 6).
func (c *Client) offersPLUS() bool {
	return slices.Contains(strings.Fields(strings.ToUpper(c.ext["AUTH"])), "SCRAM-SHA-256-PLUS")
}

func (s *scramClient) Start() (mech string, ir []byte, err error) {
	first, err := s.conv.Step("")
	return s.mech, []byte(first), err
}

func (s *scramClient) Next(challenge []byte) ([]byte, error) {
	s.step++
	switch s.step {
	case 1:
		if err := checkIterations(string(challenge)); err != nil {
			return nil, err
		}
	case 2: // the server's proof; what follows is an empty response
	default:
		return nil, protocolErrorf("a challenge after the end of %s", s.mech)
	}
	out, err := s.conv.Step(string(challenge))
	if err != nil {
		return nil, protocolErrorf("%s", cut(Clean(err.Error()), maxReplyText))
	}
	return []byte(out), nil
}

// verified reports whether the server has proved that it knows the password.
func (s *scramClient) verified() bool { return s.conv.Valid() }

// checkIterations bounds the work that a server can ask for.
func checkIterations(first string) error {
	for attr := range strings.SplitSeq(first, ",") {
		if v, ok := strings.CutPrefix(attr, "i="); ok {
			if n, err := strconv.ParseUint(v, 10, 31); err != nil || n < minIterations || n > maxIterations {
				return protocolErrorf("SCRAM with iterations that are not from %d to %d", minIterations, maxIterations)
			}
			return nil
		}
	}
	return protocolErrorf("SCRAM without iterations")
}
