package filequeue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// Values are encoded as varints and as strings with their length before them. Structs
// grow at their end: a decoder that finds no more octets leaves the rest zero. What an older
// program must not overlook raises formatVersion.

var errDecode = errors.New("filequeue: a record does not parse")

type encoder struct{ b []byte }

func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) byte(v byte)   { e.b = append(e.b, v) }

func (e *encoder) str(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) bool(v bool) {
	if v {
		e.byte(1)
	} else {
		e.byte(0)
	}
}

// nest encodes what f does as one string.
func (e *encoder) nest(f func(e *encoder)) {
	var in encoder
	f(&in)
	e.uint(uint64(len(in.b)))
	e.b = append(e.b, in.b...)
}

func (e *encoder) time(t time.Time) {
	if t.IsZero() {
		e.str("")
		return
	}
	b, err := t.MarshalBinary()
	if err != nil { // a zone that it cannot express
		b, _ = t.UTC().MarshalBinary()
	}
	e.str(string(b))
}

// A decoder reads what an encoder wrote. The first error stays, and everything
// after it is zero; so is what lies behind the end.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() { d.b, d.err = nil, errDecode }

func (d *decoder) uint() uint64 {
	if len(d.b) == 0 {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	if len(d.b) == 0 {
		return 0
	}
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) bool() bool { return d.byte() != 0 }

// raw returns the octets of a string, which are those of the input.
func (d *decoder) raw() []byte {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) str() string { return string(d.raw()) }

// count reads a number of elements that take at least one octet each, so that
// what is allocated for them is bounded by the input.
func (d *decoder) count() int {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) time() (t time.Time) {
	if b := d.raw(); len(b) > 0 && d.err == nil {
		if err := t.UnmarshalBinary(b); err != nil {
			d.fail()
			return time.Time{}
		}
	}
	return t
}

// The tags of an envelope's fields. Fields that are zero are left out.
const (
	tagID = iota + 1
	tagFrom
	tagRecipient // repeated
	tagRet
	tagEnvID
	tagBody
	tagUTF8
	tagRequireTLS
	tagDeliverBy
	tagPriority
	tagHoldUntil
	tagOrigin
	tagTenant
	tagStream
	tagPool
	tagVerdict
	tagMeta // repeated
)

func (e *encoder) address(a mailspine.Address) {
	e.str(a.Local)
	e.str(a.Domain)
}

func (d *decoder) address() mailspine.Address {
	return mailspine.Address{Local: d.str(), Domain: d.str()}
}

func (e *encoder) tls(t mailspine.TLSInfo) {
	e.str(t.Version)
	e.str(t.Cipher)
	e.str(t.Peer)
	e.str(t.ServerID)
}

func (d *decoder) tls() mailspine.TLSInfo {
	return mailspine.TLSInfo{Version: d.str(), Cipher: d.str(), Peer: d.str(), ServerID: d.str()}
}

func (e *encoder) envelope(env *mailspine.Envelope) {
	text := func(tag uint64, s string) {
		if s != "" {
			e.uint(tag)
			e.str(s)
		}
	}
	field := func(tag uint64, set bool, f func(e *encoder)) {
		if set {
			e.uint(tag)
			e.nest(f)
		}
	}
	text(tagID, string(env.ID))
	field(tagFrom, !env.From.IsZero(), func(e *encoder) { e.address(env.From) })
	for i := range env.Recipients {
		r := &env.Recipients[i]
		field(tagRecipient, true, func(e *encoder) {
			e.address(r.Address)
			e.byte(byte(r.Notify))
			e.str(r.ORcpt)
		})
	}
	field(tagRet, env.Ret != 0, func(e *encoder) { e.byte(byte(env.Ret)) })
	text(tagEnvID, env.EnvID)
	field(tagBody, env.Body != 0, func(e *encoder) { e.byte(byte(env.Body)) })
	field(tagUTF8, env.UTF8, func(e *encoder) { e.bool(true) })
	field(tagRequireTLS, env.RequireTLS, func(e *encoder) { e.bool(true) })
	field(tagDeliverBy, env.DeliverBy != (mailspine.DeliverBy{}), func(e *encoder) {
		e.time(env.DeliverBy.Time)
		e.bool(env.DeliverBy.Return)
		e.bool(env.DeliverBy.Trace)
	})
	field(tagPriority, env.Priority != 0, func(e *encoder) { e.int(int64(env.Priority)) })
	field(tagHoldUntil, !env.HoldUntil.IsZero(), func(e *encoder) { e.time(env.HoldUntil) })
	field(tagOrigin, env.Origin != (mailspine.Origin{}), func(e *encoder) {
		o := &env.Origin
		addr, _ := o.Addr.MarshalBinary() // has no error to return
		local, _ := o.Local.MarshalBinary()
		e.str(string(addr))
		e.str(string(local))
		e.str(o.Helo)
		e.str(o.Proto)
		e.tls(o.TLS)
		e.str(o.Login)
		e.time(o.Time)
	})
	text(tagTenant, env.Tenant)
	text(tagStream, env.Stream)
	text(tagPool, env.Pool)
	field(tagVerdict, env.Verdict != nil, func(e *encoder) {
		v := env.Verdict
		for _, s := range []string{v.SPF, v.DKIM, v.DMARC, v.ARC, v.SPFDomain, v.FromDomain, v.Policy, v.Disposition} {
			e.str(s)
		}
		e.uint(uint64(len(v.DKIMDomains)))
		for _, s := range v.DKIMDomains {
			e.str(s)
		}
		e.str(v.BIMI)
		e.str(v.Indicator)
		e.str(v.Evidence)
	})
	for k, v := range env.Meta {
		field(tagMeta, true, func(e *encoder) {
			e.str(k)
			e.str(v)
		})
	}
}

func (d *decoder) envelope() *mailspine.Envelope {
	env := &mailspine.Envelope{}
	for len(d.b) > 0 && d.err == nil {
		tag := d.uint()
		in := decoder{b: d.raw()}
		switch tag {
		case tagID:
			env.ID = mailspine.MsgID(in.b)
		case tagFrom:
			env.From = in.address()
		case tagRecipient:
			env.Recipients = append(env.Recipients, mailspine.Recipient{
				Address: in.address(), Notify: mailspine.Notify(in.byte()), ORcpt: in.str(),
			})
		case tagRet:
			env.Ret = mailspine.Ret(in.byte())
		case tagEnvID:
			env.EnvID = string(in.b)
		case tagBody:
			env.Body = mailspine.Body(in.byte())
		case tagUTF8:
			env.UTF8 = in.bool()
		case tagRequireTLS:
			env.RequireTLS = in.bool()
		case tagDeliverBy:
			env.DeliverBy = mailspine.DeliverBy{Time: in.time(), Return: in.bool(), Trace: in.bool()}
		case tagPriority:
			env.Priority = int(in.int())
		case tagHoldUntil:
			env.HoldUntil = in.time()
		case tagOrigin:
			o := &env.Origin
			if o.Addr.UnmarshalBinary(in.raw()) != nil || o.Local.UnmarshalBinary(in.raw()) != nil {
				in.fail()
			}
			o.Helo, o.Proto, o.TLS, o.Login, o.Time = in.str(), in.str(), in.tls(), in.str(), in.time()
		case tagTenant:
			env.Tenant = string(in.b)
		case tagStream:
			env.Stream = string(in.b)
		case tagPool:
			env.Pool = string(in.b)
		case tagVerdict:
			v := &mailspine.Verdict{}
			for _, s := range []*string{&v.SPF, &v.DKIM, &v.DMARC, &v.ARC, &v.SPFDomain, &v.FromDomain, &v.Policy, &v.Disposition} {
				*s = in.str()
			}
			for range in.count() {
				v.DKIMDomains = append(v.DKIMDomains, in.str())
			}
			if len(in.b) > 0 { // records of before BIMI end here
				v.BIMI, v.Indicator, v.Evidence = in.str(), in.str(), in.str()
			}
			env.Verdict = v
		case tagMeta:
			if env.Meta == nil {
				env.Meta = map[string]string{}
			}
			k := in.str()
			env.Meta[k] = in.str()
		default:
			// A newer program wrote it, and has to say so in formatVersion.
			d.err = fmt.Errorf("%w: unknown envelope field %d", errDecode, tag)
			return env
		}
		if in.err != nil {
			d.fail()
		}
	}
	return env
}

const (
	resultWarned = 1 << iota
	resultStatus
	resultCause
	resultRelayed
	resultReceipt
)

func (e *encoder) result(r queue.Result) {
	var flags byte
	set := func(f byte, on bool) {
		if on {
			flags |= f
		}
	}
	set(resultWarned, r.Warned)
	set(resultStatus, r.Status != nil)
	set(resultCause, r.Status != nil && r.Status.Err != nil)
	set(resultRelayed, r.Receipt.DSNRelayed)
	set(resultReceipt, r.Receipt != mailspine.Receipt{DSNRelayed: r.Receipt.DSNRelayed})
	e.byte(byte(r.State))
	e.byte(flags)
	if s := r.Status; s != nil {
		e.int(int64(s.Code))
		for _, n := range s.Enhanced {
			e.int(int64(n))
		}
		e.str(s.Message)
		if s.Err != nil {
			e.str(s.Err.Error())
		}
	}
	if flags&resultReceipt != 0 {
		e.str(r.Receipt.RemoteMTA)
		e.str(r.Receipt.RemoteAddr)
		e.str(r.Receipt.Reply)
		e.str(r.Receipt.Source)
		e.tls(r.Receipt.TLS)
	}
}

func (d *decoder) result() (r queue.Result) {
	r.State = queue.State(d.byte())
	flags := d.byte()
	r.Warned = flags&resultWarned != 0
	r.Receipt.DSNRelayed = flags&resultRelayed != 0
	if flags&resultStatus != 0 {
		s := &mailspine.Error{Code: int(d.int())}
		for i := range s.Enhanced {
			s.Enhanced[i] = int(d.int())
		}
		s.Message = d.str()
		if flags&resultCause != 0 {
			s.Err = errors.New(d.str())
		}
		r.Status = s
	}
	if flags&resultReceipt != 0 {
		r.Receipt.RemoteMTA, r.Receipt.RemoteAddr, r.Receipt.Reply, r.Receipt.Source = d.str(), d.str(), d.str(), d.str()
		r.Receipt.TLS = d.tls()
	}
	return r
}

// skipResult goes over a result.
func (d *decoder) skipResult() {
	d.byte()
	flags := d.byte()
	strings := 0
	if flags&resultStatus != 0 {
		for range 4 { // code and enhanced code
			d.int()
		}
		strings = 1
		if flags&resultCause != 0 {
			strings = 2
		}
	}
	if flags&resultReceipt != 0 {
		strings += 8
	}
	for range strings {
		d.raw()
	}
}
