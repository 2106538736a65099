package convert

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/mailspine/mailspine"
)

// Options say what is done to a message. The zero value does nothing. They are
// safe for concurrent use as long as nobody changes them.
type Options struct {
	// UTF8 turns text, encoded words and parameters into UTF-8.
	UTF8 bool
	// Text replaces HTML by a text view of it.
	Text bool
	// KeepHTML, with Text, puts the view before the HTML, as multipart/alternative,
	// and leaves the HTML where it is. Without Text it means nothing.
	KeepHTML bool
	// SevenBit encodes everything that is not seven bits.
	SevenBit bool

	// Stager is where Convert puts the derived message; nil: a
	// mailspine.SpoolStager, in memory up to 64 KiB and in a temporary file beyond.
	Stager mailspine.Stager
}

// The bounds of a message that is converted. Header blocks, taken together, are
// bounded by mailspine.MaxHeader.
const (
	MaxDepth = 32   // parts inside of parts
	MaxParts = 1000 // parts in all
)

// The reasons for which a message as a whole comes out unchanged, matched with
// errors.Is in Result.Problem.
var (
	ErrTooDeep        = errors.New("convert: parts are nested too deeply")
	ErrTooManyParts   = errors.New("convert: too many parts")
	ErrHeaderTooLarge = errors.New("convert: the header blocks are too large")
	ErrMalformed      = errors.New("convert: the message cannot be taken apart")
	// ErrTooLarge: the derived message would be over six times as large as the original
	// and 1 MiB, or the reading too much. Write may return it as its error.
	ErrTooLarge = errors.New("convert: the derived message would be too large")
)

// A Result tells what was done.
type Result struct {
	// Changed says that there is a derived message, other than the original.
	Changed bool
	// Done is what was done, in the words of the field X-Mailspine-Converted: "utf-8",
	// "text", "7bit".
	Done []string
	// Notes are what was left as it was, or lost something, at most 100.
	Notes []Note
	// EightBit says that SevenBit was asked for, and that some octets are over 127, or some
	// lines too long, nevertheless. Notes say which.
	EightBit bool
	// Problem is why the message could not be taken apart; nil: it could. It wraps one
	// of the errors of this package, and Changed is false.
	Problem error
}

// A Note is about one part of a message.
type Note struct {
	Part string // as in IMAP: "1.2"; "" is the message itself
	Text string // for people; nothing of the message is in it but names of fields and of charsets, quoted
}

const maxNotes = 100

// String returns the part and the text.
func (n Note) String() string {
	if n.Part == "" {
		return n.Text
	}
	return "part " + n.Part + ": " + n.Text
}

// A Derived is a message that was made of another one.
type Derived struct {
	Result
	// Content is the derived message, or the original when it was not Changed. It is
	// valid until Close.
	Content mailspine.Content

	stage mailspine.Stage
}

// Close gives back the place of the derived message. It can be called more than
// once.
func (d *Derived) Close() error {
	if d.stage == nil {
		return nil
	}
	return d.stage.Close()
}

// Convert derives a message. The error is of a reader, of the Stager or of ctx:
// what is wrong with the message itself is no error, but in the Result.
func (o *Options) Convert(ctx context.Context, msg mailspine.Content) (*Derived, error) {
	j := &job{ctx: ctx, o: o, src: &source{ctx: ctx, msg: msg}}
	defer j.src.Close()
	if err := j.prepare(); err != nil || !j.res.Changed {
		return &Derived{Result: j.res, Content: msg}, err
	}
	stager := o.Stager
	if stager == nil {
		stager = &mailspine.SpoolStager{}
	}
	stage, err := stager.Stage(ctx, msg.Size())
	if err != nil {
		return nil, err
	}
	if err = j.writeTo(stage); err == nil {
		var c mailspine.Content
		if c, err = stage.Content(); err == nil {
			return &Derived{Result: j.res, Content: c, stage: stage}, nil
		}
	}
	closed := stage.Close()
	if errors.Is(err, ErrTooLarge) {
		return &Derived{Result: Result{Notes: j.res.Notes, Problem: err}, Content: msg}, closed
	}
	return nil, errors.Join(err, closed)
}

// Write is Convert with a place of the caller's: the derived message is written to
// w, and nothing is when it was not Changed. After an error what w got is worth nothing.
func (o *Options) Write(ctx context.Context, w io.Writer, msg mailspine.Content) (Result, error) {
	j := &job{ctx: ctx, o: o, src: &source{ctx: ctx, msg: msg}}
	defer j.src.Close()
	if err := j.prepare(); err != nil || !j.res.Changed {
		return j.res, err
	}
	err := j.writeTo(w)
	return j.res, err
}

// String names what the options ask for: "utf-8,text,7bit". It is empty for those that
// ask for nothing.
func (o *Options) String() string {
	var s []string
	if o.UTF8 {
		s = append(s, doneUTF8)
	}
	if o.Text && o.KeepHTML {
		s = append(s, "text+html")
	} else if o.Text {
		s = append(s, doneText)
	}
	if o.SevenBit {
		s = append(s, done7Bit)
	}
	return strings.Join(s, ",")
}

// The words of X-Mailspine-Converted, in their order.
const (
	doneUTF8 = "utf-8"
	doneText = "text"
	done7Bit = "7bit"

	markField = "X-Mailspine-Converted"
)

// A job is one conversion.
type job struct {
	ctx  context.Context
	o    *Options
	src  *source
	root *node
	nl   string
	sum  [sha256.Size]byte // of the whole message; with KeepHTML only
	res  Result
	done map[string]bool

	out *bufio.Writer
}

// prepare reads the message, and decides what is done.
func (j *job) prepare() error {
	if !j.o.UTF8 && !j.o.Text && !j.o.SevenBit {
		return nil
	}
	err := j.scan()
	if errors.Is(err, ErrTooDeep) || errors.Is(err, ErrTooManyParts) || errors.Is(err, ErrHeaderTooLarge) || errors.Is(err, ErrMalformed) {
		j.res.Problem = err
		return nil
	}
	if err != nil {
		return err
	}
	j.done = map[string]bool{}
	if err := j.plan(); errors.Is(err, ErrTooLarge) {
		j.res.Problem = err
		return nil
	} else if err != nil {
		return err
	}
	for _, d := range []string{doneUTF8, doneText, done7Bit} {
		if j.done[d] {
			j.res.Done = append(j.res.Done, d)
		}
	}
	j.res.Changed = len(j.res.Done) > 0
	return nil
}

func (j *job) note(n *node, format string, args ...any) {
	if len(j.res.Notes) < maxNotes {
		j.res.Notes = append(j.res.Notes, Note{Part: n.path, Text: fmt.Sprintf(format, args...)})
	}
}

// A source gives sections of the message. It keeps one reader open, and goes
// back only where it must.
type source struct {
	ctx context.Context
	msg mailspine.Content
	r   io.ReadCloser
	pos int64
	err error // of the reader, to tell it from damage of what it reads

	head    []byte // the message is head, and then what r reads
	skipped int64  // octets read to get back to where it was before
}

// section returns a reader of [start, end), valid until the next call.
//
// Most messages can be read from anywhere. Where that is not so, going back means to read all that is
// before, and the message decides how often: the sum is bounded by 32 times its size.
func (s *source) section(start, end int64) (io.Reader, error) {
	if s.r != nil && start != s.pos && !s.seek(start) && start < s.pos {
		s.Close()
		if s.skipped += start; s.skipped > 32*s.msg.Size() {
			return nil, fmt.Errorf("%w, and the message cannot be read from the middle", ErrTooLarge)
		}
	}
	if s.r == nil {
		// A message with fields put before it can be read from anywhere, if only what is
		// below them can.
		head, base, off := mailspine.Splice(s.msg)
		r, err := base.Open(s.ctx)
		if err != nil {
			return nil, err
		}
		sk, ok := r.(io.Seeker)
		if ok {
			s.r, s.head = spliced{r, sk, off}, head
			ok = s.seek(start)
		}
		if !ok {
			r.Close()
			if r, err = s.msg.Open(s.ctx); err != nil {
				s.r = nil
				return nil, err
			}
			s.r, s.head, s.pos = r, nil, 0
		}
	}
	if start > s.pos {
		n, err := io.CopyN(io.Discard, sourceReader{s}, start-s.pos)
		if err != nil {
			return nil, fmt.Errorf("convert: the message ends after %d octets: %w", s.pos+n, noEOF(err))
		}
	}
	return &sectionReader{s, end}, nil
}

// spliced is the reader of a message that has a head.
type spliced struct {
	io.ReadCloser
	io.Seeker
	off int64 // where what is after the head begins
}

// seek moves to an octet, and says whether that could be done.
func (s *source) seek(start int64) bool {
	r, ok := s.r.(spliced)
	if !ok {
		return false
	}
	if _, err := r.Seek(r.off+max(0, start-int64(len(s.head))), io.SeekStart); err != nil {
		return false
	}
	s.pos = start
	return true
}

func (s *source) Close() {
	if s.r != nil {
		s.r.Close()
		s.r = nil
	}
}

// sourceReader reads on, and stops when the context has ended.
type sourceReader struct{ s *source }

func (r sourceReader) Read(p []byte) (int, error) {
	if err := r.s.ctx.Err(); err != nil {
		r.s.err = err
		return 0, err
	}
	if r.s.pos < int64(len(r.s.head)) {
		n := copy(p, r.s.head[r.s.pos:])
		r.s.pos += int64(n)
		return n, nil
	}
	n, err := r.s.r.Read(p)
	r.s.pos += int64(n)
	if err != nil && err != io.EOF {
		r.s.err = err
	}
	return n, err
}

type sectionReader struct {
	s   *source
	end int64
}

func (r *sectionReader) Read(p []byte) (int, error) {
	left := r.end - r.s.pos
	if left <= 0 {
		return 0, io.EOF
	}
	n, err := sourceReader{r.s}.Read(p[:min(int64(len(p)), left)])
	if err == io.EOF && r.s.pos < r.end {
		err = io.ErrUnexpectedEOF // a Content is as long as it says
		r.s.err = err
	}
	return n, err
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
