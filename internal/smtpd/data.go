package smtpd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
)

// A message is what comes in after DATA or with BDAT.
type message struct {
	next  func()      // reads a piece: sets pending, or one of the ends below
	ready func() bool // next would not wait for the client
	drain func()      // reads and drops what the client is bound to send yet

	textCheck
	pending []byte // of br's buffer: valid until the next read
	raw     int64  // octets read, with dots and all
	verdict error  // the message is bad
	ended   bool   // the end was seen
	whole   bool   // and io.EOF was returned to the session
	failed  error  // the connection failed
	gone    bool   // it is over: who still reads it has a bug, and must not see what comes next
	gaveUp  bool   // the client sends far more than is reasonable
	aborted []byte // the command that ended a sequence of BDAT
	part    bool   // what is being read is a chunk with others behind it
}

func (c *Conn) newMessage() *message {
	l := c.server.limits
	return &message{textCheck: textCheck{maxLine: l.MaxLine, maxSize: l.MaxSize}}
}

var errGone = errors.New("smtpd: a message was read after Data had returned")

// errAborted is for the log only: the client is answered what it said instead.
var errAborted = mailspine.Errorf(503, "5.5.1", "The client gave up the message")

// Read is the session's view.
func (m *message) Read(p []byte) (int, error) {
	if m.gone {
		return 0, errGone
	}
	if len(p) == 0 {
		return 0, nil
	}
	n := 0
	for {
		k := copy(p[n:], m.pending)
		m.pending = m.pending[k:]
		if n += k; n == len(p) || n > 0 && (m.verdict != nil || m.failed != nil || m.aborted != nil || m.ended || !m.ready()) {
			return n, nil
		}
		switch {
		case m.verdict != nil:
			return 0, m.verdict
		case m.failed != nil:
			return 0, m.failed
		case m.aborted != nil:
			return 0, errAborted
		case m.ended:
			m.whole = true
			return 0, io.EOF
		}
		m.next()
	}
}

// take looks at a piece, and makes it pending if all is well.
func (m *message) take(piece []byte) {
	m.pending = nil
	if !m.bare { // also when there is a verdict: a bare message ends the connection
		if err := m.scan(piece); m.verdict == nil {
			m.verdict = err
		}
	}
	if m.verdict == nil {
		m.pending = piece
	}
	// Beyond twice the limit nobody is mistaken about the size any more.
	if m.maxSize > 0 && m.raw > 2*m.maxSize+1<<20 {
		m.gaveUp = true
	}
}

func (m *message) fail(err error) {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	m.pending, m.failed = nil, err
}

// dataMessage reads what follows DATA: up to CR LF . CR LF, dots unstuffed
// (RFC 5321 section 4.5.2). A piece is as much as is there up to the next dot that begins a line.
func (c *Conn) dataMessage() *message {
	m := c.newMessage()
	begin, cr := true, false // at the beginning of a line; after a CR
	m.next = func() {
		c.widen()
		b, err := c.br.Peek(1)
		if len(b) == 0 {
			m.fail(err)
			return
		}
		if begin && b[0] == '.' {
			switch end, err := c.endOfData(); {
			case err != nil:
				m.fail(err)
				return
			case end:
				c.br.Discard(len(endOfData))
				m.raw += int64(len(endOfData))
				if m.verdict == nil {
					m.verdict = m.end()
				}
				m.pending, m.ended = nil, true
				return
			}
			// What is behind the dot belongs to this line, also if it is another dot. It is there.
			c.br.Discard(1)
			m.raw++
		}
		b, _ = c.br.Peek(c.br.Buffered())
		if cr && b[0] == '\n' && len(b) > 1 && b[1] == '.' {
			b, begin = b[:1], true
		} else if i := bytes.Index(b, lineThenDot); i >= 0 {
			b, begin = b[:i+2], true
		} else {
			n := len(b)
			begin = b[n-1] == '\n' && (n > 1 && b[n-2] == '\r' || n == 1 && cr)
		}
		cr = b[len(b)-1] == '\r'
		c.br.Discard(len(b)) // b stays valid until the next read
		m.raw += int64(len(b))
		m.take(b)
	}
	m.ready = func() bool {
		b, _ := c.br.Peek(min(c.br.Buffered(), len(endOfData)))
		return len(b) == len(endOfData) || len(b) > 0 && !(begin && b[0] == '.')
	}
	m.drain = func() {
		for !m.ended && m.failed == nil && !m.gaveUp {
			m.next()
		}
		m.pending = nil
	}
	return m
}

// What ends a message where a line begins, and what may. They never change.
var (
	endOfData   = []byte(".\r\n")
	lineThenDot = []byte("\r\n.")
)

// endOfData reports whether what comes next, at the beginning of a line, is the end. It
// waits for no more octets than it takes to know that.
func (c *Conn) endOfData() (bool, error) {
	for n := 1; ; n++ {
		b, err := c.br.Peek(n)
		switch {
		case len(b) < n:
			return false, err
		case b[n-1] != endOfData[n-1]:
			return false, nil
		case n == len(endOfData):
			return true, nil
		}
	}
}

func (c *Conn) readyForData() bool {
	switch {
	case c.tx == nil:
		c.refuse(503, "5.5.1", "Say MAIL first")
	case len(c.tx.Envelope.Recipients) == 0 && c.refused && !c.server.LMTP:
		c.refuse(554, "5.5.1", "No valid recipients")
	case len(c.tx.Envelope.Recipients) == 0: // RFC 2033 section 4.2 has 503, too
		c.refuse(503, "5.5.1", "Say RCPT first")
	default:
		return true
	}
	return false
}

func (c *Conn) data() {
	if !c.readyForData() {
		return
	}
	c.say(354, mailspine.EnhancedCode{}, "End the message with CR LF . CR LF")
	c.flush()
	if !c.over {
		c.receive(c.dataMessage())
	}
}

// receive has the session take a message, and answers.
func (c *Conn) receive(m *message) {
	began := time.Now()
	c.inData, c.dataEnd = true, after(began, c.server.limits.Data)
	tx, env := c.tx, c.tx.Envelope
	text, err := "", errPanicked
	c.guard(func() { text, err = c.sess.Data(c.ctx, tx, onlyReader{m}) })
	if !c.over {
		m.drain()
	}
	m.gone = true
	c.inData, c.dataEnd = false, time.Time{}
	if c.traces() {
		c.traceWire(false, fmt.Sprintf("[message of %d octets]", m.size))
	}

	switch {
	case m.failed != nil:
		err = m.failed
	case m.aborted != nil:
		err = errAborted
	case m.verdict != nil:
		if err == nil {
			c.Logger().Error("smtpd: the session took a message that must not be taken", "id", env.ID, "err", m.verdict)
		}
		err = m.verdict
	case err == nil && !m.whole:
		err = errors.New("smtpd: the session took a message that it had not read")
	}
	c.finished(env, m, err, time.Since(began))
	switch {
	case c.over: // a panic, and 421 is said
		return
	case m.failed != nil:
		c.readFailed(m.failed)
		c.over = true
		return
	case m.aborted != nil:
		c.reset()
		if !c.over {
			c.command(m.aborted)
		}
		return
	}
	if c.server.LMTP && !m.part {
		for i := range env.Recipients { // RFC 2033 section 4.2
			c.answer(text, forOne(mailspine.ErrorAt(err, i)))
		}
	} else {
		c.answer(text, err)
	}
	// One error at most, whoever is refused, and none if someone was taken.
	if err != nil && (!c.server.LMTP || !slices.Contains(mailspine.ErrorsFor(err, len(env.Recipients)), nil)) {
		c.errs++
	} else {
		c.errs = 0
	}
	if m.gaveUp || m.bare {
		c.bye("4.7.0", "Closing the connection")
	}
	c.reset()
}

// onlyReader hides the message's other methods from the session.
type onlyReader struct{ m *message }

func (r onlyReader) Read(p []byte) (int, error) { return r.m.Read(p) }

// forOne is the status of one of several recipients: not one that ends the
// connection, and with it the others' replies.
func forOne(err error) error {
	if st := mailspine.Status(err); st != nil && (st.Code == 421 || st.Code == 521) {
		st.Code += 29 // 450, 550
		return st
	}
	return err
}

func (c *Conn) answer(text string, err error) {
	if err == nil {
		if text == "" {
			text = "Ok"
		}
		c.ok(250, "2.0.0", text)
		return
	}
	st := mailspine.Status(err)
	if st.Code == 421 || st.Code == 521 {
		c.finish(st.Code, st.Enhanced, st.Message)
		return
	}
	c.say(st.Code, st.Enhanced, strings.Split(st.Message, "\n")...)
}

// finished counts, logs and traces the end of a transaction.
func (c *Conn) finished(env *mailspine.Envelope, m *message, err error, took time.Duration) {
	level, text := slog.LevelInfo, "smtpd: message taken"
	var st *mailspine.Error
	if err == nil {
		c.server.stats.messages.Add(1)
	} else {
		c.server.stats.refused.Add(1)
		text, st = "smtpd: message not taken", mailspine.Status(err)
		var planned *mailspine.Error
		if !errors.As(err, &planned) && st.Enhanced == (mailspine.EnhancedCode{4, 3, 0}) {
			level = slog.LevelError
		}
	}
	if c.logs(level) { // or the attributes would be made for nobody
		attrs := []any{"id", env.ID, "from", env.From.Path(), "recipients", len(env.Recipients), "size", m.size,
			"helo", env.Origin.Helo, "proto", env.Origin.Proto, "login", env.Origin.Login, "took", took.Round(time.Microsecond)}
		if err != nil {
			attrs = append(attrs, "reply", st.Reply(), "err", err)
		}
		c.Logger().Log(c.ctx, level, text, attrs...)
	}
	c.trace(func(t *Trace) {
		if t.Message != nil {
			t.Message(c.ctx, env, m.size, err)
		}
	})
}

// bdat receives a message in chunks (RFC 3030). The session reads all of them as one; between two,
// its reader answers the one before and waits for the next.
func (c *Conn) bdat(arg string) {
	size, last, ok := parseBdat(arg)
	if !ok {
		c.refuse(501, "5.5.4", "The syntax is BDAT size [LAST]")
		return
	}
	m := c.newMessage()
	var left int64
	next := func() {
		c.widen()
		b, err := c.br.Peek(1)
		if len(b) == 0 {
			m.fail(err)
			return
		}
		b, _ = c.br.Peek(int(min(left, int64(c.br.Buffered()))))
		c.br.Discard(len(b)) // b stays valid until the next read
		left -= int64(len(b))
		m.raw += int64(len(b))
		m.take(b)
	}
	m.ready = func() bool { return left > 0 && c.br.Buffered() > 0 }
	m.drain = func() {
		for left > 0 && m.failed == nil && !m.gaveUp {
			next()
		}
		m.pending = nil
	}
	left, m.part = size, !last
	if c.tx == nil || len(c.tx.Envelope.Recipients) == 0 {
		// The chunk follows the command even when that is refused (RFC 3030 section 2).
		m.verdict = errAborted
		c.inData, c.dataEnd = true, after(time.Now(), c.server.limits.Data)
		c.readyForData()
		c.flush()
		m.drain()
		c.inData, c.dataEnd = false, time.Time{}
		switch {
		case m.failed != nil:
			c.readFailed(m.failed)
			c.over = true
		case m.gaveUp:
			c.bye("4.7.0", "Chunk is too large")
		}
		return
	}
	m.next = func() {
		for left == 0 {
			if last {
				if m.verdict == nil {
					m.verdict = m.end()
				}
				m.pending, m.ended = nil, true
				return
			}
			c.ok(250, "2.0.0", "Ok")
			if left, last = c.nextChunk(m); m.failed != nil || m.aborted != nil {
				return
			}
			m.part = !last
		}
		next()
	}
	c.receive(m)
}

// nextChunk waits for the next BDAT, or for a command that ends the sequence. Others are refused.
func (c *Conn) nextChunk(m *message) (size int64, last bool) {
	c.inData = false
	defer func() { c.inData = true }()
	for { // bounded by MaxCommands and MaxErrors
		line, err := c.readLine(maxCommandLine)
		if err != nil && err != errTooLong {
			m.fail(err)
			return 0, false
		}
		text, _ := cleanLine(line)
		verb, arg, _ := strings.Cut(text, " ")
		c.commands++
		l := c.server.limits
		spent := l.MaxCommands > 0 && c.commands > l.MaxCommands || l.MaxErrors > 0 && c.errs > l.MaxErrors
		switch verb = strings.ToUpper(verb); {
		case spent:
			m.aborted = []byte("NOOP\r\n")
			c.bye("4.7.0", "Too many commands or errors")
			return 0, false
		case err != nil:
			c.traceWire(false, "[line too long]")
			c.refuse(500, "5.5.2", "Line too long")
		case verb == "BDAT":
			c.traceWire(false, text)
			if size, last, ok := parseBdat(strings.TrimRight(arg, " ")); ok {
				return size, last
			}
			c.refuse(501, "5.5.4", "The syntax is BDAT size [LAST]")
		case verb == "NOOP":
			c.command(line)
		case verb == "RSET" || verb == "QUIT" || verb == "EHLO" || verb == "HELO" || verb == "LHLO":
			m.aborted = bytes.Clone(line)
			return 0, false
		default:
			c.traceWire(false, "["+verb+" inside of a message]")
			c.refuse(503, "5.5.1", "A message has begun: BDAT or RSET")
		}
	}
}

func parseBdat(arg string) (size int64, last, ok bool) {
	num, flag, has := strings.Cut(arg, " ")
	if has && !strings.EqualFold(flag, "LAST") || len(num) > 18 || strings.Trim(num, "0123456789") != "" {
		return 0, false, false
	}
	size, err := strconv.ParseInt(num, 10, 64)
	return size, has, err == nil
}
