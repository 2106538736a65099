package filequeue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
)

// DoctorOptions tune [Doctor]. The zero value looks, and changes nothing.
type DoctorOptions struct {
	// Repair makes Doctor change what it must so that the store can be opened. What is damaged is kept in damaged/.
	Repair bool
	// Found is called for each finding, from Doctor's goroutine, as soon as it is known; nil: nobody is told.
	Found func(Finding)
	// MaxFindings is how many of them the Report has; more are counted. 0: 10,000.
	MaxFindings int

	fs       durable.FS         // tests break it; nil: the operating system's
	testHook func(point string) // tests stop there
}

// A Severity says how bad a finding is.
type Severity string

// The severities.
const (
	Note    Severity = "note"   // what a crash leaves; Open deals with it
	Damage  Severity = "damage" // something is not what was written, and no crash explains it
	Missing Severity = "lost"   // mail cannot be delivered any more
)

// A Kind says what a finding is about.
type Kind string

// The kinds.
const (
	KindHeader  Kind = "header"  // the header of a segment
	KindRecord  Kind = "record"  // octets of the journal that are no record
	KindBody    Kind = "body"    // the content that a record has
	KindEntry   Kind = "entry"   // a record that is whole and makes no sense
	KindSegment Kind = "segment" // a segment that is missing
	KindTail    Kind = "tail"    // a write that was not finished
	KindFile    Kind = "file"    // a body with a file of its own
	KindOrphan  Kind = "orphan"  // a file that no message refers to
	KindResults Kind = "results" // what happened to a message; it may be delivered again
	KindMessage Kind = "message" // a message
)

// A Finding is something that [Doctor] found.
type Finding struct {
	Severity Severity
	Kind     Kind
	File     string // in the store's directory, with slashes
	Offset   int64  // in the file, in octets; with Length 0: the whole file
	Length   int64
	Text     string // what it is, for people
	Action   string // what Repair does, or has done, about it; "": nothing

	// Message is the message concerned, if that is known, and Envelope what can be read of its envelope, with the
	// recipients that were not done; nil: nothing. If Guess is set they are from octets with a wrong
	// checksum: a hint that may be wrong itself.
	Message  mailspine.MsgID
	Envelope *mailspine.Envelope
	Guess    bool
}

// String returns the finding as one line.
func (f Finding) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", f.Severity, f.File)
	if f.Length > 0 {
		fmt.Fprintf(&b, ", octets %d to %d", f.Offset, f.Offset+f.Length-1)
	}
	fmt.Fprintf(&b, ": %s", f.Text)
	if f.Message != "" {
		fmt.Fprintf(&b, "; message %q", f.Message)
	}
	if f.Envelope != nil {
		fmt.Fprintf(&b, " from %q to", f.Envelope.From)
		for i, r := range f.Envelope.Recipients {
			if i == maxTold {
				fmt.Fprintf(&b, " and %d more", len(f.Envelope.Recipients)-i)
				break
			}
			fmt.Fprintf(&b, " %q", r.Address)
		}
	}
	if f.Guess {
		b.WriteString(" (read from damaged octets)")
	}
	if f.Action != "" {
		fmt.Fprintf(&b, " [%s]", f.Action)
	}
	return b.String()
}

// maxTold is how many recipients a line names.
const maxTold = 100

// A Report is what [Doctor] found.
type Report struct {
	Segments int
	Records  int64 // that are whole
	Messages int64 // that are whole and not finished: what a store has that is opened after a repair
	Items    int64 // theirs
	Bytes    int64 // of their content

	Notes    int       // findings by severity
	Damages  int       //
	Lost     int       // messages that cannot be delivered any more, and items whose message is not known
	Findings []Finding // at most DoctorOptions.MaxFindings, in the order in which they were found
	Omitted  int       // findings that are not in Findings

	Repaired bool   // the store was changed, and is whole now
	Saved    string // where what was damaged is kept; "": nothing was
}

// OK reports whether nothing is damaged and nothing is lost.
func (r *Report) OK() bool { return r.Damages == 0 && r.Lost == 0 }

// String returns the report as text for people.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d segments, %d records, %d messages with %d items and %d octets of content are whole.\n",
		r.Segments, r.Records, r.Messages, r.Items, r.Bytes)
	fmt.Fprintf(&b, "%d notes, %d damages, %d lost.\n", r.Notes, r.Damages, r.Lost)
	for _, f := range r.Findings {
		b.WriteString(f.String())
		b.WriteByte('\n')
	}
	if r.Omitted > 0 {
		fmt.Fprintf(&b, "and %d more.\n", r.Omitted)
	}
	if r.Saved != "" {
		fmt.Fprintf(&b, "What was damaged is in %s.\n", r.Saved)
	}
	return b.String()
}

// Doctor reads all of a store that nobody has open: each octet of the journal and of the bodies is compared with its
// checksum, each record is taken apart, and what they say is compared with what is there. A store
// that is open is refused with an error that names the process, and one that a newer
// program wrote with an error that says so. What is found is no error. The Report is never nil.
//
// With DoctorOptions.Repair it makes a store that can be opened out of one that cannot, and delivers nothing that is damaged:
//
//   - what is damaged is kept in damaged/, in a directory for each repair, with the report: first, and synced. Nothing is thrown away;
//   - of a damaged segment the records that are whole are written to a new one, which takes its place in one step. After damage
//     the next record is found by the file's random marker;
//   - a message whose content is damaged or gone is not in the queue any more; it is listed with its ID, sender and
//     recipients, as far as they can be read;
//   - results that are lost mean that a message may be delivered again, and are listed.
//
// A repair that is interrupted, by a crash or ctx, is finished by the next one, whose report says what was left to do. Doctor takes memory for the messages in the
// queue, as an open store does, and for one record. It needs room for a copy of each damaged segment.
//
// What cannot be known: that the last segment was removed, or that the last write was damaged and not
// interrupted; bodies without a message are the only trace of the former.
func Doctor(ctx context.Context, dir string, o DoctorOptions) (*Report, error) {
	d := &doctor{ctx: ctx, dir: dir, opt: o, fsys: durable.Or(o.fs), rep: &Report{}}
	if d.opt.MaxFindings <= 0 {
		d.opt.MaxFindings = 10_000
	}
	if err := d.run(); err != nil {
		return d.rep, fmt.Errorf("filequeue: doctor %s: %w", dir, err)
	}
	return d.rep, nil
}

// errStillDamaged is for a repair that did not do what it should.
var errStillDamaged = errors.New("the repair is done, and there is still damage")

type doctor struct {
	ctx  context.Context
	dir  string
	opt  DoctorOptions
	fsys durable.FS
	rep  *Report
	*chart
}

func (d *doctor) run() error {
	fi, err := d.fsys.Stat(d.dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return &fs.PathError{Op: "open", Path: d.dir, Err: errors.New("is no directory")}
	}
	lock, err := d.fsys.Lock(filepath.Join(d.dir, lockName))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := d.examine(); err != nil {
		return err
	}
	if !d.opt.Repair || d.rep.OK() {
		return nil
	}
	if err := d.repair(); err != nil {
		return err
	}
	// Trust nothing, this program least.
	again := &doctor{ctx: d.ctx, dir: d.dir, fsys: d.fsys, rep: &Report{}}
	if err := again.examine(); err != nil {
		return err
	}
	if !again.rep.OK() {
		return fmt.Errorf("%w: %s", errStillDamaged, again.rep)
	}
	d.rep.Repaired = true
	d.rep.Segments, d.rep.Records = again.rep.Segments, again.rep.Records
	d.rep.Messages, d.rep.Items, d.rep.Bytes = again.rep.Messages, again.rep.Items, again.rep.Bytes
	return nil
}

func (d *doctor) found(f Finding) {
	switch f.Severity {
	case Note:
		d.rep.Notes++
	case Damage:
		d.rep.Damages++
	case Missing:
		d.rep.Lost++
	}
	if len(d.rep.Findings) < d.opt.MaxFindings {
		d.rep.Findings = append(d.rep.Findings, f)
	} else {
		d.rep.Omitted++
	}
	if d.opt.Found != nil {
		d.opt.Found(f)
	}
}

func (d *doctor) hook(point string) {
	if d.opt.testHook != nil {
		d.opt.testHook(point)
	}
}

func (d *doctor) path(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}
