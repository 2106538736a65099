package smtpd

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailspine/mailspine"
)

// maxHops is how many Received fields a message may have (RFC 5321 section 6.3
// asks for at least 100).
const maxHops = 100

// A Door takes messages for a Deliverer: it stages the data, lets its owner look
// at the header, hands the message on, and makes one reply of the results. It is
// safe for concurrent use; its fields must not change once it is used.
//
// # One reply for many recipients
//
// SMTP has one reply after the data. When Next took the message for none of the
// recipients, the reply is the worst Status (a temporary one if there is any),
// and the client keeps all of it. When Next took it for some, the client
// must be told 250, since it would otherwise send the message to all again; the recipients
// that Next did not take go to Undelivered, which bounces or queues the message
// for them, and whose nil is needed for the 250. Undelivered is called with the
// envelope's Subset, under an ID of its own, since a queue is idempotent by ID and
// may have the message for others already; the log has both. It finds the reasons
// with [mailspine.FailuresFrom].
//
// Undelivered may be nil only if Next takes all recipients or none, as a queue
// does. If it is nil and the results are mixed nevertheless, or if Undelivered
// refuses too, then nothing that the door could say is true for everyone: it
// answers the worst Status of what nobody took, so that nothing is lost; the
// client may then send the message to recipients who have it. That is logged as an error. With
// Undelivered nil the door then also goes over to one recipient for each
// message, for as long as it lives ([Door.Rcpt] answers 452 4.5.3 to the second,
// and the client sends it another copy by itself): with one recipient there are no mixed results, so
// it does not happen again.
//
// An LMTP client gets a reply for each recipient, and Undelivered is not used.
type Door struct {
	// Next takes the messages; nil: every message is refused with 451 4.3.0.
	Next mailspine.Deliverer
	// Undelivered takes what Next did not take, when it took the message for
	// others; nil: see above.
	Undelivered mailspine.Deliverer
	// Limit is for Next and for Undelivered, each, to take a complete message. It has to be below the 10 minutes that
	// clients wait (RFC 5321 section 4.5.3.2.6). 0: 5 minutes; negative: none.
	Limit time.Duration
	// Logger; nil: slog.Default().
	Logger *slog.Logger

	single  atomic.Bool
	buffers sync.Pool // of *[dataBuffer]byte
	readers sync.Pool // of *bufio.Reader
}

// Rcpt is to be called for each RCPT, before the recipient is accepted; an error
// refuses it.
func (d *Door) Rcpt(tx *Transaction) error {
	if d.single.Load() && !tx.LMTP && len(tx.Envelope.Recipients) > 0 {
		return mailspine.Errorf(452, "4.5.3", "One recipient for each message")
	}
	return nil
}

// A Prepare looks at a staged message, and changes it: wraps msg with
// mailspine.Prepend or mailspine.Edit, fills in env. h is msg's header block. An
// error refuses the message. ctx is the connection's.
type Prepare func(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content, h *mailspine.Header) (mailspine.Content, error)

// Take is the Data of a session: it stages r in the place that Next offers (see
// mailspine.StagerOf), refuses a message with more than 100 Received fields
// (554 5.4.6) or a header block over mailspine.MaxHeader (554 5.6.0), calls
// prepare (nil: nothing to prepare), and delivers. Its results are those of Session.Data.
//
// Staging and prepare run under ctx. From then on the message is complete and
// the client may be waiting for nothing but the reply: the delivery gets a context without ctx's
// cancellation, with the time limit of the door.
func (d *Door) Take(ctx context.Context, tx *Transaction, r io.Reader, prepare Prepare) (string, error) {
	if d.Next == nil {
		return "", errors.New("smtpd: Door.Next is nil")
	}
	env := tx.Envelope
	stage, err := mailspine.StagerOf(d.Next).Stage(ctx, tx.Size)
	if err != nil {
		return "", err
	}
	defer stage.Close()
	w := &eightBit{w: stage}
	if err := d.copy(w, r); err != nil {
		return "", err
	}
	if w.found && env.Body == mailspine.Body7Bit {
		env.Body = mailspine.Body8Bit // whatever the client declared
	}
	msg, err := stage.Content()
	if err != nil {
		return "", err
	}
	h, err := d.header(ctx, msg)
	if errors.Is(err, mailspine.ErrHeaderTooLarge) {
		return "", mailspine.Errorf(554, "5.6.0", "Header is too large").WithCause(err)
	}
	if err != nil {
		return "", err
	}
	hops := 0
	for _, f := range h.Fields {
		if f.Is("Received") {
			hops++
		}
	}
	if hops > maxHops {
		return "", mailspine.Errorf(554, "5.4.6", "Too many hops, this looks like a loop")
	}
	if prepare != nil {
		if msg, err = prepare(ctx, env, msg, h); err != nil {
			return "", err
		}
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := d.deliver(context.WithoutCancel(ctx), env, msg, tx.LMTP); err != nil {
		return "", err
	}
	return "Ok: queued as " + string(env.ID), nil
}

// copy is io.Copy with a buffer that is used again.
func (d *Door) copy(w io.Writer, r io.Reader) error {
	buf, _ := d.buffers.Get().(*[dataBuffer]byte)
	if buf == nil {
		buf = new([dataBuffer]byte)
	}
	defer d.buffers.Put(buf)
	_, err := io.CopyBuffer(w, r, buf[:])
	return err
}

// header is mailspine.ReadHeader with a buffer that is used again.
func (d *Door) header(ctx context.Context, msg mailspine.Content) (*mailspine.Header, error) {
	r, err := msg.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	br := reader(&d.readers, readBuffer, r)
	defer func() {
		br.Reset(nil)
		d.readers.Put(br)
	}()
	return mailspine.ParseHeader(br, 0) // which reads from a *bufio.Reader of this size directly
}

func (d *Door) log() *slog.Logger {
	if d.Logger != nil {
		return d.Logger
	}
	return slog.Default()
}

func (d *Door) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := d.Limit
	if limit == 0 {
		limit = 5 * time.Minute
	}
	if limit < 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, limit)
}

func (d *Door) deliver(ctx context.Context, env *mailspine.Envelope, msg mailspine.Content, lmtp bool) error {
	nctx, cancel := d.bounded(ctx)
	err := d.Next.Deliver(nctx, env, msg)
	cancel()
	if err == nil || lmtp {
		return err
	}
	res := mailspine.ErrorsFor(err, len(env.Recipients))
	var failed []int
	var why mailspine.RecipientErrors
	for i, e := range res {
		if e != nil {
			failed = append(failed, i)
			why = append(why, e)
		}
	}
	switch {
	case len(failed) == len(res):
		return err
	case len(failed) == 0: // RecipientErrors that should have been nil
		return nil
	case d.Undelivered == nil:
		d.single.Store(true)
		d.log().Error("smtpd: a message was taken for some recipients only, and Undelivered is nil: those may get it twice; "+
			"from now on messages have one recipient", "id", env.ID, "recipients", len(res), "failed", len(failed), "err", err)
		return why
	}
	uctx, cancel := d.bounded(mailspine.WithFailures(ctx, why))
	defer cancel()
	rest := env.Subset(failed)
	rest.ID = mailspine.NewMsgID()
	left := d.Undelivered.Deliver(uctx, rest, msg)
	if left == nil {
		d.log().Info("smtpd: recipients handed to Undelivered", "id", env.ID, "as", rest.ID, "recipients", len(res), "failed", len(failed), "err", err)
		return nil
	}
	left = mailspine.ErrorsFor(left, len(failed)).Err()
	if left != nil {
		d.log().Error("smtpd: a message was taken for some recipients only, and Undelivered did not take the rest: those may get it twice",
			"id", env.ID, "recipients", len(res), "failed", len(failed), "err", err, "undelivered", left)
	}
	return left
}

// eightBit notes whether anything but ASCII is written.
type eightBit struct {
	w     io.Writer
	found bool
}

func (e *eightBit) Write(p []byte) (int, error) {
	e.found = e.found || !ascii(p)
	return e.w.Write(p)
}

// ascii reports whether no octet has its high bit set, eight at a time.
func ascii(p []byte) bool {
	const high = 0x8080808080808080
	for len(p) >= 32 {
		if (binary.NativeEndian.Uint64(p)|binary.NativeEndian.Uint64(p[8:])|
			binary.NativeEndian.Uint64(p[16:])|binary.NativeEndian.Uint64(p[24:]))&high != 0 {
			return false
		}
		p = p[32:]
	}
	for _, b := range p {
		if b >= 0x80 {
			return false
		}
	}
	return true
}
