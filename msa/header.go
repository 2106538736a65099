package msa

import (
	"context"
	"io"
	"mime"
	"net/mail"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/smtpd"
)

// once are the fields of which RFC 5322 section 3.6 allows one.
var once = []string{"Date", "From", "Sender", "Reply-To", "To", "Cc", "Bcc", "Message-ID", "In-Reply-To", "References", "Subject"}

// Bounds of an address field, which a person wrote.
const (
	maxAddressField = 64 << 10
	maxMailboxes    = 100 // of all such fields of a message: each is a question to Senders
)

func malformed(format string, args ...any) error {
	return mailspine.Errorf(554, "5.6.0", format, args...)
}

// fix checks the header and fixes it up (RFC 6409 sections 6 and 8).
func (s *Server) fix(ctx context.Context, login *mailspine.Login, by string, env *mailspine.Envelope, msg mailspine.Content, h *mailspine.Header) (mailspine.Content, error) {
	if err := checkSyntax(ctx, msg, h); err != nil {
		return nil, err
	}
	if err := s.checkAuthors(ctx, login, h); err != nil {
		return nil, err
	}
	now := s.now()
	edit := mailspine.HeaderEdit{Prepend: smtpd.Received(env, by, now), Drop: drop}
	if len(h.Values("Date")) == 0 {
		edit.Append = append(edit.Append, "Date: "+now.Format(time.RFC1123Z)+"\r\n"...)
	}
	if len(h.Values("Message-ID")) == 0 {
		edit.Append = append(edit.Append, "Message-ID: <"+string(env.ID)+"@"+by+">\r\n"...)
	}
	if len(edit.Append) == 0 && !slices.ContainsFunc(h.Fields, drop) {
		return mailspine.Prepend(msg, edit.Prepend), nil // the header need not be read again
	}
	return mailspine.Edit(ctx, msg, edit)
}

// drop says which fields do not pass; see the package comment.
func drop(f mailspine.HeaderField) bool {
	return f.Is("Bcc") || f.Is("Resent-Bcc") || f.Is("Return-Path") || f.Is("Authentication-Results") ||
		strings.HasPrefix(strings.ToLower(f.Name), "x-mailspine-")
}

func checkSyntax(ctx context.Context, msg mailspine.Content, h *mailspine.Header) error {
	if len(h.Fields) == 0 {
		return malformed("Message has no header")
	}
	for _, name := range once {
		if n := len(h.Values(name)); n > 1 {
			return malformed("Header has %d %s fields, one is allowed (RFC 5322 section 3.6)", n, name)
		}
	}
	if len(h.Values("From")) == 0 {
		return malformed("Header has no From field (RFC 5322 section 3.6)")
	}
	switch ok, err := smtpd.HeaderEnds(ctx, msg, h); {
	case err != nil:
		return err
	case !ok:
		return malformed("Header line %d is neither a field nor empty (RFC 5322 section 2.2)", lines(h)+1)
	}
	return nil
}

func lines(h *mailspine.Header) int {
	n := 0
	for _, f := range h.Fields {
		n += strings.Count(string(f.Raw), "\n")
	}
	return n
}

// checkAuthors checks that whoever the header names as author or sender is the login.
func (s *Server) checkAuthors(ctx context.Context, login *mailspine.Login, h *mailspine.Header) error {
	n := 0
	for _, name := range []string{"From", "Sender", "Resent-From", "Resent-Sender"} {
		for _, v := range h.Values(name) {
			list, err := mailboxes(v)
			if err != nil {
				return malformed("%s field has no address list (RFC 5322 section 3.6.2)", name).(*mailspine.Error).WithCause(err)
			}
			if name == "Sender" && len(list) > 1 {
				return malformed("Sender field has more than one address (RFC 5322 section 3.6.2)")
			}
			if n += len(list); n > maxMailboxes {
				return malformed("Header has more than %d authors and senders", maxMailboxes)
			}
			for _, a := range list {
				if err := s.mayUse(ctx, login, a, 554, "Address in the "+name+" field is not yours"); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// mailboxes parses a mailbox-list. There is at least one in it.
func mailboxes(v string) ([]mailspine.Address, error) {
	if len(v) > maxAddressField {
		return nil, mailspine.ErrHeaderTooLarge
	}
	// Display names are not looked at: one in a character set that we do not know is let pass.
	parser := mail.AddressParser{WordDecoder: &mime.WordDecoder{
		CharsetReader: func(_ string, r io.Reader) (io.Reader, error) { return r, nil },
	}}
	list, err := parser.ParseList(v)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || len(list) > maxMailboxes {
		return nil, mail.ErrHeaderNotPresent
	}
	out := make([]mailspine.Address, 0, len(list))
	for _, m := range list {
		// The local part comes without its quotes; a domain has no @.
		i := strings.LastIndexByte(m.Address, '@')
		if i < 0 {
			return nil, mail.ErrHeaderNotPresent
		}
		a := mailspine.Address{Local: m.Address[:i], Domain: m.Address[i+1:]}
		if err := a.Validate(); err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}
