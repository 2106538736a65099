package durabletest

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/mailspine/mailspine/internal/durable"
)

// An Op is a kind of call to a file system.
type Op string

// The kinds. Create is an OpenFile with O_CREATE, Open one without; Read and
// Write are also ReadAt and WriteAt.
const (
	Create   Op = "create"
	Open     Op = "open"
	Read     Op = "read"
	Write    Op = "write"
	Truncate Op = "truncate"
	Sync     Op = "sync"
	Close    Op = "close"
	Rename   Op = "rename"
	Link     Op = "link"
	Remove   Op = "remove"
	Mkdir    Op = "mkdir"
	ReadDir  Op = "readdir"
	Stat     Op = "stat"
	SyncDir  Op = "syncdir"
	Lock     Op = "lock"
	Free     Op = "free"
)

// A Call is one call, as a fault sees it.
type Call struct {
	Op   Op
	Name string // of the file; for Rename and Link the new name
	N    int    // of all calls since [Faults.Set], from 1
	OfOp int    // of those of the same Op, from 1
	Size int    // of a Read or Write
}

// A Fault decides what becomes of a call: nil lets it through, an error makes
// it fail without having done anything, *[ShortWrite] makes a Write fail in the middle. It may be
// called from several goroutines at a time, and may use the file system under
// the Faults.
type Fault func(Call) error

// A ShortWrite lets N octets through, and then fails with Err.
type ShortWrite struct {
	N   int
	Err error
}

// Error describes the fault; who writes gets Err.
func (s *ShortWrite) Error() string { return "short write: " + s.Err.Error() }

// Nth makes the n-th call of a kind fail with err, once. The empty Op counts calls of
// all kinds.
func Nth(op Op, n int, err error) Fault {
	return func(c Call) error {
		if op == "" && c.N == n || op == c.Op && c.OfOp == n {
			return err
		}
		return nil
	}
}

// ErrKilled is for a Fault that fails every call from some moment on, as if the
// process were dead. A Sync that fails with it loses nothing: what was written
// is left to the kernel, and to the next process that opens the Disk.
var ErrKilled = errors.New("durabletest: the process is dead")

// Faults is a file system that fails on demand. When it fails a Sync of a file
// of a [Disk], what was not synced is lost to the disk, as it is when a
// kernel fails one, unless it fails with [ErrKilled]. All methods are safe for concurrent use.
type Faults struct {
	FS durable.FS // nil: the operating system's

	mu    sync.Mutex
	fault Fault
	n     int
	ofOp  map[Op]int
}

var _ durable.FS = (*Faults)(nil)

// Set begins to count the calls anew, and makes them fail as fault says; nil:
// none does.
func (f *Faults) Set(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.n, f.ofOp = fault, 0, nil
}

// Calls returns the number of calls of a kind since Set; of all kinds if op is
// empty.
func (f *Faults) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if op == "" {
		return f.n
	}
	return f.ofOp[op]
}

func (f *Faults) call(op Op, name string, size int) error {
	f.mu.Lock()
	if f.ofOp == nil {
		f.ofOp = map[Op]int{}
	}
	f.n++
	f.ofOp[op]++
	c := Call{Op: op, Name: name, N: f.n, OfOp: f.ofOp[op], Size: size}
	fault := f.fault
	f.mu.Unlock()
	if fault == nil {
		return nil
	}
	err := fault(c)
	if _, short := err.(*ShortWrite); err == nil || short {
		return err
	}
	return &fs.PathError{Op: string(op), Path: name, Err: err}
}

func (f *Faults) under() durable.FS { return durable.Or(f.FS) }

// OpenFile implements [durable.FS].
func (f *Faults) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	op := Open
	if flag&os.O_CREATE != 0 {
		op = Create
	}
	if err := f.call(op, name, 0); err != nil {
		return nil, err
	}
	file, err := f.under().OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &faultyFile{file, f}, nil
}

// Rename implements [durable.FS].
func (f *Faults) Rename(oldname, newname string) error {
	if err := f.call(Rename, newname, 0); err != nil {
		return err
	}
	return f.under().Rename(oldname, newname)
}

// Link implements [durable.FS].
func (f *Faults) Link(oldname, newname string) error {
	if err := f.call(Link, newname, 0); err != nil {
		return err
	}
	return f.under().Link(oldname, newname)
}

// Remove implements [durable.FS].
func (f *Faults) Remove(name string) error {
	if err := f.call(Remove, name, 0); err != nil {
		return err
	}
	return f.under().Remove(name)
}

// Mkdir implements [durable.FS].
func (f *Faults) Mkdir(name string, perm fs.FileMode) error {
	if err := f.call(Mkdir, name, 0); err != nil {
		return err
	}
	return f.under().Mkdir(name, perm)
}

// ReadDir implements [durable.FS].
func (f *Faults) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := f.call(ReadDir, name, 0); err != nil {
		return nil, err
	}
	return f.under().ReadDir(name)
}

// Stat implements [durable.FS].
func (f *Faults) Stat(name string) (fs.FileInfo, error) {
	if err := f.call(Stat, name, 0); err != nil {
		return nil, err
	}
	return f.under().Stat(name)
}

// SyncDir implements [durable.FS].
func (f *Faults) SyncDir(name string) error {
	if err := f.call(SyncDir, name, 0); err != nil {
		return err
	}
	return f.under().SyncDir(name)
}

// Lock implements [durable.FS].
func (f *Faults) Lock(name string) (io.Closer, error) {
	if err := f.call(Lock, name, 0); err != nil {
		return nil, err
	}
	return f.under().Lock(name)
}

// Free implements [durable.FS].
func (f *Faults) Free(name string) (int64, error) {
	if err := f.call(Free, name, 0); err != nil {
		return 0, err
	}
	return f.under().Free(name)
}

type faultyFile struct {
	durable.File
	f *Faults
}

func (h *faultyFile) Read(p []byte) (int, error) {
	if err := h.f.call(Read, h.Name(), len(p)); err != nil {
		return 0, err
	}
	return h.File.Read(p)
}

func (h *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	if err := h.f.call(Read, h.Name(), len(p)); err != nil {
		return 0, err
	}
	return h.File.ReadAt(p, off)
}

func (h *faultyFile) Write(p []byte) (int, error) {
	return h.write(p, h.File.Write)
}

func (h *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	return h.write(p, func(p []byte) (int, error) { return h.File.WriteAt(p, off) })
}

func (h *faultyFile) write(p []byte, write func([]byte) (int, error)) (int, error) {
	err := h.f.call(Write, h.Name(), len(p))
	if short, ok := err.(*ShortWrite); ok {
		n := max(0, min(short.N, len(p)))
		n, err := write(p[:n])
		if err == nil {
			err = &fs.PathError{Op: string(Write), Path: h.Name(), Err: short.Err}
		}
		return n, err
	}
	if err != nil {
		return 0, err
	}
	return write(p)
}

func (h *faultyFile) Truncate(size int64) error {
	if err := h.f.call(Truncate, h.Name(), 0); err != nil {
		return err
	}
	return h.File.Truncate(size)
}

func (h *faultyFile) Sync() error {
	if err := h.f.call(Sync, h.Name(), 0); err != nil {
		if d, ok := h.File.(interface{ loseDirty() }); ok && !errors.Is(err, ErrKilled) {
			d.loseDirty()
		}
		return err
	}
	return h.File.Sync()
}

func (h *faultyFile) Close() error {
	// The file is closed even when that is said to have failed.
	err := h.f.call(Close, h.Name(), 0)
	if cerr := h.File.Close(); err == nil {
		err = cerr
	}
	return err
}
