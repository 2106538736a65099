package pop3

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// A maildrop is what a session sees of INBOX. It is locked.
type maildrop struct {
	box      mailbox.Mailbox
	unlock   func()
	validity uint32
	msgs     []message
	deleted  int
	octets   int64 // of those that are not deleted
}

type message struct {
	size    int64
	uid     mailbox.UID
	deleted bool
}

func (d *maildrop) release() {
	if d != nil && d.unlock != nil {
		d.unlock()
		d.unlock = nil
	}
}

// open takes the maildrop of who logged in.
func (c *conn) open(mechanism string, login *mailspine.Login) {
	d := &maildrop{}
	defer func() {
		if c.drop != d { // also if the store panics
			d.release()
		}
	}()
	err := func() error {
		ctx, cancel := context.WithTimeout(c.ctx, storeTime)
		defer cancel()
		account, err := c.srv.Mailboxes.Account(ctx, login.Name)
		if err != nil {
			return err
		}
		if d.box, err = account.Open(ctx, mailbox.Inbox); err != nil {
			return err
		}
		if d.unlock, err = d.box.LockMaildrop(ctx); err != nil {
			return err
		}
		snap, err := d.box.Snapshot(ctx)
		if err != nil {
			return err
		}
		d.validity = snap.Info.UIDValidity
		d.msgs = make([]message, len(snap.Messages))
		for i, m := range snap.Messages {
			d.msgs[i] = message{size: m.Size, uid: m.UID}
			d.octets += m.Size
		}
		return nil
	}()
	if err != nil {
		switch {
		case errors.Is(err, mailbox.ErrInUse):
			c.fail("[IN-USE] Another session has the maildrop")
			return
		case errors.Is(err, mailbox.ErrBadName):
			c.fail("[SYS/PERM] There can be no maildrop of that name")
			return
		}
		c.internal("the maildrop of a user cannot be opened", err)
		return
	}
	c.drop = d
	c.login = c.ends // no other limit of time any more
	c.log = c.log.With("login", login.Name)
	c.log.Info("pop3: logged in", "mechanism", mechanism, "messages", len(d.msgs))
	c.ok("%d messages, %d octets", len(d.msgs), d.octets)
}

var transaction = map[string]func(*conn, string){
	"STAT": (*conn).stat,
	"LIST": (*conn).list,
	"UIDL": (*conn).uidl,
	"RETR": (*conn).retr,
	"TOP":  (*conn).top,
	"DELE": (*conn).dele,
	"NOOP": func(c *conn, arg string) { c.alone(arg, "Nothing done") },
	"RSET": (*conn).rset,
}

// alone answers a command that has no argument.
func (c *conn) alone(arg, text string) bool {
	if arg != "" {
		c.fail("This command has no argument")
		return false
	}
	c.ok("%s", text)
	return true
}

func (c *conn) stat(arg string) {
	d := c.drop
	c.alone(arg, fmt.Sprintf("%d %d", len(d.msgs)-d.deleted, d.octets))
}

// number returns the message that an argument names, or answers that there is none.
func (c *conn) number(arg string) (*message, int) {
	n, err := strconv.ParseUint(arg, 10, 31)
	switch {
	case err != nil:
		c.fail("The number of a message is missing")
	case n < 1 || n > uint64(len(c.drop.msgs)):
		c.fail("There is no such message")
	case c.drop.msgs[n-1].deleted:
		c.fail("The message is deleted")
	default:
		return &c.drop.msgs[n-1], int(n)
	}
	return nil, 0
}

// each lists one message or all that are not deleted.
func (c *conn) each(arg string, show func(m *message) string) {
	if arg != "" {
		if m, n := c.number(arg); m != nil {
			c.ok("%d %s", n, show(m))
		}
		return
	}
	c.ok("%d messages", len(c.drop.msgs)-c.drop.deleted)
	for i := range c.drop.msgs {
		if m := &c.drop.msgs[i]; !m.deleted {
			c.reply(strconv.Itoa(i+1) + " " + show(m))
		}
		if c.over {
			return
		}
	}
	c.reply(".")
}

func (c *conn) list(arg string) {
	c.each(arg, func(m *message) string { return strconv.FormatInt(m.size, 10) })
}

func (c *conn) uidl(arg string) {
	c.each(arg, func(m *message) string { return fmt.Sprintf("%08x%08x", c.drop.validity, uint32(m.uid)) })
}

func (c *conn) dele(arg string) {
	if m, n := c.number(arg); m != nil {
		m.deleted = true
		c.drop.deleted++
		c.drop.octets -= m.size
		c.ok("Message %d is deleted at QUIT", n)
	}
}

func (c *conn) rset(arg string) {
	if !c.alone(arg, "No message is deleted") {
		return
	}
	d := c.drop
	d.deleted, d.octets = 0, 0
	for i := range d.msgs {
		d.msgs[i].deleted = false
		d.octets += d.msgs[i].size
	}
}

func (c *conn) retr(arg string) {
	if m, _ := c.number(arg); m != nil && c.send(m, -1) {
		c.srv.stats.retrieved.Add(1)
	}
}

func (c *conn) top(arg string) {
	num, lines, ok := strings.Cut(arg, " ")
	n, err := strconv.ParseUint(lines, 10, 31)
	if !ok || err != nil {
		c.fail("TOP has the numbers of a message and of lines")
		return
	}
	if m, _ := c.number(num); m != nil {
		c.send(m, int(n))
	}
}

// send sends a message, or its header and some lines of its body; -1: all. It reports whether it was sent whole.
func (c *conn) send(m *message, lines int) bool {
	body, err := c.drop.box.Body(c.ctx, m.uid)
	if errors.Is(err, mailbox.ErrNoMessage) || errors.Is(err, mailbox.ErrNoMailbox) {
		c.gone()
		return false
	}
	if err != nil {
		c.internal("a message cannot be read", err)
		return false
	}
	defer body.Close()
	if lines < 0 {
		c.ok("%d octets", body.Size())
	} else {
		c.ok("The top follows")
	}
	n, err := copyMessage(c.ctx, c.bw, io.NewSectionReader(body, 0, body.Size()), lines)
	if err != nil {
		// There is no way to say so after +OK but to end.
		if !c.over {
			c.log.Error("pop3: a message cannot be read to its end", "err", err)
			c.over = true
		}
		return false
	}
	c.bw.WriteString(".\r\n")
	c.wire(true, fmt.Sprintf("[%d octets]", n))
	return true
}

// copyMessage writes a message with dots stuffed (RFC 1939 section 3), up to a number of lines of its body; -1: all. Each
// CR and LF that is not part of a CRLF becomes one, and so does the end of a last line without. It returns how many octets it
// wrote without the stuffing.
func copyMessage(ctx context.Context, w *bufio.Writer, r io.Reader, lines int) (n int64, err error) {
	br := bufio.NewReaderSize(r, blockLen)
	var last byte = '\n' // of what was read
	start := true        // of a line
	header := true
	empty := true // the line has nothing so far
	end := func() error {
		w.WriteString("\r\n")
		n += 2
		if header && empty {
			header = false
		} else if !header && lines > 0 {
			lines--
		}
		start, empty = true, true
		return ctx.Err()
	}
	for header || lines != 0 {
		b, err := br.ReadByte()
		if err == io.EOF {
			if last == '\r' || !start {
				return n, end()
			}
			return n, nil
		}
		if err != nil {
			return n, err
		}
		switch {
		case b == '\n':
			if err := end(); err != nil {
				return n, err
			}
		case last == '\r': // a bare one
			if err := end(); err != nil {
				return n, err
			}
			if !header && lines == 0 {
				return n, nil
			}
		}
		last = b
		if b == '\n' || b == '\r' {
			continue
		}
		if start && b == '.' {
			w.WriteByte('.')
		}
		if err := w.WriteByte(b); err != nil {
			return n, err
		}
		n++
		start, empty = false, false
	}
	return n, nil
}

// quit ends the session, and in the TRANSACTION state removes what was deleted (RFC 1939 section 6).
func (c *conn) quit(arg string) {
	if arg != "" {
		c.fail("QUIT has no argument")
		return
	}
	c.over = true
	d := c.drop
	if d == nil || d.deleted == 0 {
		d.release()
		c.ok("Goodbye")
		return
	}
	defer d.release() // before the reply is sent, so that who connects anew at once is let in
	// A client that pipelines may be gone. What it was not sent, it shall find again.
	if c.bw.Flush() != nil {
		return
	}
	var gone []mailbox.UID
	for _, m := range d.msgs {
		if m.deleted {
			gone = append(gone, m.uid)
		}
	}
	// What has begun ends, whatever becomes of the connection.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), storeTime)
	defer cancel()
	for part := range slices.Chunk(gone, mailbox.MaxUIDs/10) {
		// Those that others removed meanwhile are not missed.
		done, err := d.box.Expunge(ctx, part, mailbox.ExpungeOptions{Any: true})
		c.srv.stats.deleted.Add(int64(len(done)))
		if err != nil && !errors.Is(err, mailbox.ErrNoMailbox) {
			c.log.Error("pop3: messages cannot be removed", "err", err)
			c.fail("[SYS/TEMP] Some deleted messages are not removed")
			return
		}
	}
	c.log.Info("pop3: messages removed", "messages", len(gone))
	c.ok("Goodbye, %d messages are removed", len(gone))
}
