package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mailspine/mailspine/mda/mailbox"
)

// A Kind says what an Op does. The values are part of the log's format.
type Kind uint8

// The kinds.
const (
	KindCounters  Kind = 1 + iota // snapshot: the account's counters
	KindMake                      // a mailbox comes to be
	KindDrop                      // a mailbox goes, with its messages
	KindRename                    // a mailbox gets another name
	KindSubscribe                 // a name is subscribed to, or not any more
	KindLimit                     // the quota's limits
	KindAdd                       // a message comes
	KindFlags                     // messages get other flags
	KindExpunge                   // messages go
	KindTombs                     // snapshot: messages that went long ago
	KindCounts                    // snapshot: a mailbox's counters
	KindDelivery                  // snapshot: a delivery to remember
)

// A Hash stands for DeliverOptions.ID. Zero is none.
type Hash [16]byte

// An Op is one change of a State. Which fields mean something depends on its Kind.
type Op struct {
	Kind Kind
	Box  uint64 // the mailbox; for KindCounters the next one

	Name     string // Make, Rename, Subscribe
	Use      mailbox.SpecialUse
	On       bool   // Subscribe
	Validity uint32 // Make; for Counters the last one given

	UIDs   []mailbox.UID // Flags, Expunge, Tombs: ascending; Add, Delivery: one; Counts: UIDNext
	ModSeq mailbox.ModSeq
	Floor  mailbox.ModSeq // Counts: the ModSeq from which on everything is known

	Flags [][]mailbox.Flag // Flags: one set for each of UIDs; Add: one

	Date, Size   int64 // Add; for Limit messages and octets
	Key, EmailID string
	Delivery     Hash

	// File is not part of the log: what the driver calls the body now.
	File string
}

// An Entry is what is applied as a whole.
type Entry []Op

// ErrCorrupt is matched by the errors of entries that cannot be decoded or applied.
var ErrCorrupt = errors.New("ledger: entry is corrupt")

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// maxEntry bounds the encoding of an entry, in octets, so that it fits into a
// record of any driver's log.
const maxEntry = 16 << 20

// bound returns at least the length of the encoding.
func (e Entry) bound() (n int) {
	for i := range e {
		o := &e[i]
		n += 80 + len(o.Name) + len(o.Use) + len(o.Key) + len(o.EmailID) + 5*len(o.UIDs)
		for _, flags := range o.Flags {
			n += 12
			for _, f := range flags {
				n += 2 + len(f)
			}
		}
	}
	return n
}

// formatVersion begins each encoded entry.
const formatVersion = 1

// Append appends the encoding of e to b.
//
// An entry is a version octet, then for each op its kind and all its fields
// in the order of encode, numbers as varints and strings with their length.
func (e Entry) Append(b []byte) []byte {
	b = append(b, formatVersion)
	for i := range e {
		b = e[i].encode(b)
	}
	return b
}

func appendString[S ~string](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// systemFlags are the bits of the flags that need no string; part of the format.
var systemFlags = [...]mailbox.Flag{mailbox.Seen, mailbox.Answered, mailbox.Flagged, mailbox.Deleted, mailbox.Draft}

func appendFlags(b []byte, flags []mailbox.Flag) []byte {
	var bits byte
	var words int
	for _, f := range flags {
		if i := slices.Index(systemFlags[:], f); i >= 0 {
			bits |= 1 << i
		} else {
			words++
		}
	}
	if words == 0 {
		return append(b, bits)
	}
	b = append(b, bits|0x80)
	b = binary.AppendUvarint(b, uint64(words))
	for _, f := range flags {
		if slices.Index(systemFlags[:], f) < 0 {
			b = appendString(b, f)
		}
	}
	return b
}

func (o *Op) encode(b []byte) []byte {
	b = append(b, byte(o.Kind))
	b = binary.AppendUvarint(b, o.Box)
	switch o.Kind {
	case KindCounters:
		b = binary.AppendUvarint(b, uint64(o.Validity))
	case KindMake:
		b = appendString(b, o.Name)
		b = appendString(b, o.Use)
		b = binary.AppendUvarint(b, uint64(o.Validity))
	case KindDrop:
	case KindRename:
		b = appendString(b, o.Name)
	case KindSubscribe:
		b = appendString(b, o.Name)
		b = append(b, boolByte(o.On))
	case KindLimit:
		b = binary.AppendUvarint(b, uint64(o.Size))
		b = binary.AppendUvarint(b, uint64(o.Date))
	case KindAdd:
		b = binary.AppendUvarint(b, uint64(o.UIDs[0]))
		b = binary.AppendUvarint(b, uint64(o.ModSeq))
		b = appendFlags(b, o.Flags[0])
		b = binary.AppendUvarint(b, uint64(o.Date))
		b = binary.AppendUvarint(b, uint64(o.Size))
		b = appendString(b, o.Key)
		b = appendString(b, o.EmailID)
		b = append(b, boolByte(o.Delivery != Hash{}))
		if o.Delivery != (Hash{}) {
			b = append(b, o.Delivery[:]...)
		}
	case KindFlags:
		b = binary.AppendUvarint(b, uint64(o.ModSeq))
		b = appendUIDs(b, o.UIDs)
		for _, f := range o.Flags {
			b = appendFlags(b, f)
		}
	case KindExpunge, KindTombs:
		b = binary.AppendUvarint(b, uint64(o.ModSeq))
		b = appendUIDs(b, o.UIDs)
	case KindCounts:
		b = binary.AppendUvarint(b, uint64(o.UIDs[0]))
		b = binary.AppendUvarint(b, uint64(o.ModSeq))
		b = binary.AppendUvarint(b, uint64(o.Floor))
	case KindDelivery:
		b = binary.AppendUvarint(b, uint64(o.UIDs[0]))
		b = append(b, o.Delivery[:]...)
	}
	return b
}

func boolByte(on bool) byte {
	if on {
		return 1
	}
	return 0
}

// appendUIDs writes ascending UIDs as their number and the distances between them.
func appendUIDs(b []byte, uids []mailbox.UID) []byte {
	b = binary.AppendUvarint(b, uint64(len(uids)))
	var last mailbox.UID
	for _, u := range uids {
		b = binary.AppendUvarint(b, uint64(u-last))
		last = u
	}
	return b
}

// Decode is the reverse of Append. It is total: whatever the octets are, it returns an
// entry or an error, and what it allocates is bounded by their number.
func Decode(b []byte) (Entry, error) {
	if len(b) == 0 || b[0] != formatVersion {
		return nil, corrupt("unknown version")
	}
	d := &decoder{b: b[1:]}
	var e Entry
	for len(d.b) > 0 && d.err == nil { // each op takes two octets at least
		e = append(e, d.op())
	}
	if d.err != nil {
		return nil, fmt.Errorf("%w (at octet %d of %d)", d.err, len(b)-len(d.b), len(b))
	}
	return e, nil
}

// A decoder reads fields; after the first error all are zero.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = corrupt(format, args...)
	}
}

func (d *decoder) byte() byte {
	if d.err != nil || len(d.b) == 0 {
		d.fail("it ends early")
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uint(max uint64) uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > max {
		d.fail("a number is broken or over %d", max)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) string(max int) string {
	n := int(d.uint(uint64(max)))
	if d.err != nil || n > len(d.b) {
		d.fail("it ends early")
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) bool() bool {
	c := d.byte()
	if c > 1 {
		d.fail("a flag is %d", c)
	}
	return c == 1
}

func (d *decoder) hash() (h Hash) {
	if d.err != nil || len(d.b) < len(h) {
		d.fail("it ends early")
		return
	}
	copy(h[:], d.b)
	d.b = d.b[len(h):]
	return
}

func (d *decoder) uid() mailbox.UID       { return mailbox.UID(d.uint(1<<32 - 1)) }
func (d *decoder) modseq() mailbox.ModSeq { return mailbox.ModSeq(d.uint(1<<63 - 1)) }

func (d *decoder) uids() []mailbox.UID {
	n := d.uint(uint64(len(d.b))) // each takes an octet at least
	if n == 0 || d.err != nil {
		d.fail("no UIDs")
		return nil
	}
	uids := make([]mailbox.UID, 0, n)
	var last uint64
	for range n {
		step := d.uint(1<<32 - 1)
		last += step
		if d.err != nil || step == 0 || last > 1<<32-1 {
			d.fail("UIDs do not ascend")
			return nil
		}
		uids = append(uids, mailbox.UID(last))
	}
	return uids
}

func (d *decoder) flags() []mailbox.Flag {
	bits := d.byte()
	if bits&0x60 != 0 {
		d.fail("unknown system flags")
		return nil
	}
	var flags []mailbox.Flag
	for i, f := range systemFlags {
		if bits&(1<<i) != 0 {
			flags = append(flags, f)
		}
	}
	if bits&0x80 != 0 {
		for range d.uint(mailbox.MaxKeywords) {
			flags = append(flags, mailbox.Flag(d.string(mailbox.MaxKeywordLen)))
			if d.err != nil {
				return nil
			}
		}
	}
	clean, err := mailbox.CleanFlags(flags)
	if err != nil || len(clean) != len(flags) {
		d.fail("flags are not clean")
		return nil
	}
	return clean
}

func (d *decoder) op() Op {
	o := Op{Kind: Kind(d.byte()), Box: d.uint(1<<63 - 1)}
	switch o.Kind {
	case KindCounters:
		o.Validity = uint32(d.uint(1<<32 - 1))
	case KindMake:
		o.Name = d.string(mailbox.MaxName)
		o.Use = mailbox.SpecialUse(d.string(32))
		o.Validity = uint32(d.uint(1<<32 - 1))
	case KindDrop:
	case KindRename:
		o.Name = d.string(mailbox.MaxName)
	case KindSubscribe:
		o.Name = d.string(mailbox.MaxName)
		o.On = d.bool()
	case KindLimit:
		o.Size = int64(d.uint(1<<63 - 1))
		o.Date = int64(d.uint(1<<63 - 1))
	case KindAdd:
		o.UIDs = []mailbox.UID{d.uid()}
		o.ModSeq = d.modseq()
		o.Flags = [][]mailbox.Flag{d.flags()}
		o.Date = int64(d.uint(maxDate))
		o.Size = int64(d.uint(maxSize))
		o.Key = d.string(maxKey)
		o.EmailID = d.string(maxKey)
		if d.bool() {
			o.Delivery = d.hash()
		}
	case KindFlags:
		o.ModSeq = d.modseq()
		o.UIDs = d.uids()
		for range o.UIDs {
			if d.err != nil {
				break
			}
			o.Flags = append(o.Flags, d.flags())
		}
	case KindExpunge, KindTombs:
		o.ModSeq = d.modseq()
		o.UIDs = d.uids()
	case KindCounts:
		o.UIDs = []mailbox.UID{d.uid()}
		o.ModSeq = d.modseq()
		o.Floor = d.modseq()
	case KindDelivery:
		o.UIDs = []mailbox.UID{d.uid()}
		o.Delivery = d.hash()
	default:
		d.fail("unknown kind %d", o.Kind)
	}
	return o
}

// The bounds of numbers and strings in an entry.
const (
	maxDate = 253402300799 // the end of the year 9999
	maxSize = 1 << 50
	maxKey  = 255
)
