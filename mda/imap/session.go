package imap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-sasl"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// A session is what the engine calls for one connection: by its goroutine, and Idle by another.
type session struct {
	srv   *Server
	conn  *conn
	ctx   context.Context
	begin time.Time
	login *time.Timer // of Limits.Login; nil: none
	life  *time.Timer // of Limits.Session; nil: none

	user    string // of the account; "": nobody logged in
	account mailbox.Account
	authBad int

	mu     sync.Mutex // guards what follows
	view   *view      // of the selected mailbox; nil: none
	closed bool
	idle   sync.WaitGroup // Idle calls
}

var (
	_ imapserver.SessionNamespace   = (*session)(nil)
	_ imapserver.SessionMove        = (*session)(nil)
	_ imapserver.SessionSASL        = (*session)(nil)
	_ imapserver.SessionAppendLimit = (*session)(nil)
)

func (s *Server) session(ec *imapserver.Conn) imapserver.Session {
	c := ec.NetConn().(*conn) // the only kind that the engine is given
	x := &session{srv: s, conn: c, ctx: c.ctx, begin: time.Now()}
	c.mu.Lock()
	c.engine = ec
	c.mu.Unlock()
	if d := s.limits.Login; d > 0 {
		x.login = time.AfterFunc(d, func() { c.end("Log in sooner") })
	}
	if d := s.limits.Session; d > 0 {
		x.life = time.AfterFunc(d, func() { c.end("The session lasted too long") })
	}
	if t := s.Trace; t != nil && t.Connected != nil {
		t.Connected(x.ctx, c.remote)
	}
	return x
}

// Close ends the session. The engine has closed the connection, or is about to.
func (x *session) Close() error {
	for _, t := range []*time.Timer{x.login, x.life} {
		if t != nil {
			t.Stop()
		}
	}
	x.conn.Close() // so that an Idle which writes ends
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	x.idle.Wait()
	if t := x.srv.Trace; t != nil && t.Disconnected != nil {
		t.Disconnected(x.ctx, x.conn.remote, time.Since(x.begin))
	}
	x.srv.forget(x.conn)
	return nil
}

func no(code imap.ResponseCode, format string, args ...any) error {
	return &imap.Error{Type: imap.StatusResponseTypeNo, Code: code, Text: fmt.Sprintf(format, args...)}
}

// fail makes a reply of an error of the store.
func (x *session) fail(err error) error {
	var ie *imap.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ie):
		return err
	case errors.Is(err, mailbox.ErrNoMailbox):
		return no(imap.ResponseCodeNonExistent, "There is no such mailbox")
	case errors.Is(err, mailbox.ErrNoMessage):
		return no("EXPUNGEISSUED", "The message is not there any more")
	case errors.Is(err, mailbox.ErrExists):
		return no(imap.ResponseCodeAlreadyExists, "It exists already")
	case errors.Is(err, mailbox.ErrInbox):
		return no(imap.ResponseCodeCannot, "INBOX cannot be deleted")
	case errors.Is(err, mailbox.ErrBadName):
		return no(imap.ResponseCodeCannot, "A mailbox cannot have that name")
	case errors.Is(err, mailbox.ErrBadFlag):
		return no(imap.ResponseCodeCannot, "A message cannot have that flag")
	case errors.Is(err, mailbox.ErrOverQuota):
		return no(imap.ResponseCodeOverQuota, "There is no room in the account")
	case errors.Is(err, mailbox.ErrTooBig):
		return no(imap.ResponseCodeTooBig, "The message is too big")
	case errors.Is(err, mailbox.ErrLimit):
		return no(imap.ResponseCodeLimit, "Too many or too much")
	case errors.Is(err, mailbox.ErrReadOnly):
		return no(imap.ResponseCodeNoPerm, "The mailbox is read-only")
	case errors.Is(err, mailbox.ErrInUse):
		return no(imap.ResponseCodeInUse, "In use")
	case x.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
		return no(imap.ResponseCodeUnavailable, "Interrupted")
	}
	x.srv.stats.errors.Add(1)
	x.srv.logger().Error("imap: a command failed", "remote", x.conn.remote, "login", x.user, "err", err)
	return no(imap.ResponseCodeUnavailable, "Internal error, try again later")
}

// AuthenticateMechanisms lists the mechanisms.
func (x *session) AuthenticateMechanisms() []string { return []string{sasl.Plain} }

// Authenticate begins an exchange.
func (x *session) Authenticate(mech string) (sasl.Server, error) {
	if mech != sasl.Plain {
		return nil, no("", "The mechanism is not available")
	}
	p := &plainServer{}
	p.Server = sasl.NewPlainServer(func(identity, username, password string) error {
		p.checked = true
		return x.logIn(identity, username, password)
	})
	return p, nil
}

// A plainServer tells a malformed response from one that is wrong.
type plainServer struct {
	sasl.Server
	checked bool
}

func (p *plainServer) Next(response []byte) ([]byte, bool, error) {
	challenge, done, err := p.Server.Next(response)
	if err != nil && !p.checked {
		err = &imap.Error{Type: imap.StatusResponseTypeBad, Text: "Malformed PLAIN response"}
	}
	return challenge, done, err
}

// Login is the LOGIN command.
func (x *session) Login(username, password string) error { return x.logIn("", username, password) }

// An Authenticator need not expect more.
const maxCredential = 1024

func (x *session) logIn(identity, username, password string) error {
	defer x.conn.work()()
	login, err := x.authenticate(identity, username, password)
	if t := x.srv.Trace; t != nil && t.LoggedIn != nil {
		name := ""
		if login != nil {
			name = login.Name
		}
		t.LoggedIn(x.ctx, x.conn.remote, name, err)
	}
	if errors.Is(err, mailspine.ErrBadCredentials) {
		return x.badLogin(username, err)
	}
	if err == nil {
		x.account, err = x.srv.Mailboxes.Account(x.ctx, login.Name)
	}
	if err != nil {
		return x.fail(err)
	}
	x.user = login.Name
	if x.login != nil {
		x.login.Stop()
	}
	x.srv.stats.authOK.Add(1)
	x.srv.logger().Info("imap: logged in", "remote", x.conn.remote, "login", login.Name)
	return nil
}

func (x *session) authenticate(identity, username, password string) (*mailspine.Login, error) {
	for _, v := range []string{identity, username, password} {
		if len(v) > maxCredential || !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return nil, fmt.Errorf("malformed credentials: %w", mailspine.ErrBadCredentials)
		}
	}
	if username == "" || password == "" { // RFC 4616 section 2; some directories take an empty password for a guest
		return nil, fmt.Errorf("empty user name or password: %w", mailspine.ErrBadCredentials)
	}
	login, err := x.srv.Auth.Authenticate(x.ctx, mailspine.Credentials{
		Username: username, Password: password, AuthzID: identity, Service: "imap", Remote: x.conn.remote, TLS: true, // there is no other way to the engine
	})
	if err == nil && (login == nil || login.Name == "") {
		err = errors.New("the Authenticator returned no login and no error")
	}
	return login, err
}

// badLogin answers a failed login; guesses take longer and longer.
func (x *session) badLogin(username string, err error) error {
	x.authBad++
	x.srv.stats.authBad.Add(1)
	x.srv.logger().Warn("imap: login failed", "remote", x.conn.remote, "failures", x.authBad, "user", fmt.Sprintf("%.64q", username), "err", err)
	d := x.srv.AuthDelay
	if d == 0 {
		d = time.Second
	}
	if d = min(max(d, 0)<<min(x.authBad-1, 10), 8*time.Second); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-x.srv.closing:
		case <-x.ctx.Done():
		}
	}
	if n := x.srv.limits.MaxAuthFailures; n > 0 && x.authBad >= n {
		x.conn.end("Too many failed logins")
	}
	return imapserver.ErrAuthFailed
}

// AppendLimit is the largest message of APPEND.
func (x *session) AppendLimit() uint32 {
	if n := x.srv.limits.MaxMessage; n > 0 {
		return uint32(min(n, 1<<32-1))
	}
	return 1<<32 - 1
}

// Namespace says that there are only the user's own mailboxes.
func (x *session) Namespace() (*imap.NamespaceData, error) {
	return &imap.NamespaceData{Personal: []imap.NamespaceDescriptor{{Delim: delim}}}, nil
}

const delim = '/'

// selected locks the session and returns what is selected, with what changed pulled.
func (x *session) selected() (v *view, unlock func(), err error) {
	done := x.conn.work()
	x.mu.Lock()
	unlock = func() { x.mu.Unlock(); done() }
	v = x.view
	if v == nil {
		err = no("", "No mailbox is selected")
	} else if err = x.fail(v.pull(x.ctx)); err == nil && v.lost {
		err = no(imap.ResponseCodeNonExistent, "The mailbox was deleted")
	}
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return v, unlock, nil
}

// Select opens a mailbox.
func (x *session) Select(name string, options *imap.SelectOptions) (*imap.SelectData, error) {
	defer x.conn.work()()
	box, err := x.account.Open(x.ctx, name)
	if err != nil {
		return nil, x.fail(err)
	}
	snap, err := box.Snapshot(x.ctx)
	if err != nil {
		return nil, x.fail(err)
	}
	data := &imap.SelectData{
		NumMessages: uint32(len(snap.Messages)), UIDNext: imap.UID(snap.Info.UIDNext), UIDValidity: snap.Info.UIDValidity,
	}
	seen := map[mailbox.Flag]bool{}
	for _, f := range []mailbox.Flag{mailbox.Answered, mailbox.Flagged, mailbox.Deleted, mailbox.Seen, mailbox.Draft} {
		seen[f] = true
		data.Flags = append(data.Flags, imap.Flag(f))
	}
	for i, m := range snap.Messages {
		if data.FirstUnseenSeqNum == 0 && !mailbox.HasFlag(m.Flags, mailbox.Seen) {
			data.FirstUnseenSeqNum = uint32(i + 1)
		}
		for _, f := range m.Flags {
			if !seen[f] && len(seen) < 5+mailbox.MaxKeywords {
				seen[f] = true
				data.Flags = append(data.Flags, imap.Flag(f))
			}
		}
	}
	if !options.ReadOnly {
		data.PermanentFlags = append(append(data.PermanentFlags, data.Flags...), imap.FlagWildcard)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.view = newView(box, snap, options.ReadOnly)
	return data, nil
}

// Unselect forgets the mailbox.
func (x *session) Unselect() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.view = nil
	return nil
}

// Poll tells what changed, after a command.
func (x *session) Poll(w *imapserver.UpdateWriter, allowExpunge bool) error {
	defer x.conn.work()()
	return x.poll(w, allowExpunge)
}

func (x *session) poll(w *imapserver.UpdateWriter, allowExpunge bool) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.view == nil {
		return nil
	}
	if err := x.view.pull(x.ctx); err != nil {
		// The command itself went well: what changed is told next time.
		x.fail(err)
		return nil
	}
	return x.view.tell(w, allowExpunge)
}

// Idle tells what changes, until stop is closed.
func (x *session) Idle(w *imapserver.UpdateWriter, stop <-chan struct{}) error {
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		return nil
	}
	x.idle.Add(1)
	x.mu.Unlock()
	defer x.idle.Done()
	ctx, cancel := context.WithCancel(x.ctx)
	defer cancel()
	x.idle.Go(func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	})
	// Watch first and look then, so that nothing slips through.
	watch, err := x.account.Watch(ctx)
	if err != nil {
		return x.idleError(ctx, err)
	}
	defer watch.Close()
	for {
		if err := x.poll(w, true); err != nil {
			return err
		}
		if _, err := watch.Next(ctx); err != nil { // whichever mailbox it is: looking is cheap
			return x.idleError(ctx, err)
		}
	}
}

func (x *session) idleError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return x.fail(err)
}
