package durabletest

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mailspine/mailspine/internal/durable"
)

// ErrPowerCut is returned by every call to a Disk after the cut.
var ErrPowerCut = errors.New("durabletest: the power is cut")

// A Disk is a file system in memory that tells what is synced from what is
// not. The zero value is an empty disk with a root and the working directory,
// without an end. All methods are safe for concurrent use.
//
// What survives a [Disk.Crash] is as little as POSIX promises: the content of a file as of
// its last Sync, and the names in a directory as of its last SyncDir. Of
// everything later any part may be there: sectors of 512 octets of a write
// without the others, a truncation without the write before it, a new name without the content or
// the other way round. Two things are taken for granted, because each file
// system in use gives them: a rename inside of a directory happens or does not, and one
// between directories never leaves the file without a name.
type Disk struct {
	mu      sync.Mutex
	root    *node
	ops     int
	cutAt   int // 0: never
	isCut   bool
	seq     int     // of pending operations
	meta    []*half // pending, in order
	locks   map[string]bool
	limit   int64 // 0: none
	used    int64
	written int64
	syncs   int
}

var _ durable.FS = (*Disk)(nil)

type node struct {
	dir     bool
	perm    fs.FileMode
	mod     time.Time
	data    []byte // as the process sees it
	synced  []byte // as it is on the disk
	pending []write
	links   int
	names   map[string]*node // of a directory, as the process sees it
	durable map[string]*node // of a directory, on the disk
}

// A write is a change of content that is not synced.
type write struct {
	seq  int
	off  int64 // of data; for a truncation, the size
	data []byte
	cut  bool // a truncation
}

// A half is one changed name that is not synced; a rename has two of them.
type half struct {
	seq   int
	dir   *node
	name  string
	to    *node // nil: the name is removed
	after *half // has to be on the disk before this one
	with  *half // is on the disk together with this one
	done  bool
}

func (d *Disk) init() {
	if d.root == nil {
		d.root = newDir(0o755)
		d.locks = map[string]bool{}
	}
}

func newDir(perm fs.FileMode) *node {
	return &node{dir: true, perm: perm, links: 1, names: map[string]*node{}, durable: map[string]*node{}, mod: time.Now()}
}

// Ops returns the number of operations so far that change something or make
// something durable. These are the points of [Disk.CutAt].
func (d *Disk) Ops() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops
}

// Syncs returns how often a file or directory was synced, and Written how many octets
// were written.
func (d *Disk) Syncs() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs
}

// Written returns how many octets were written.
func (d *Disk) Written() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.written
}

// Used returns how many octets the files have in all.
func (d *Disk) Used() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used
}

// CutAt cuts the power during the n-th operation from the beginning, counted from 1: it
// fails, having been done in part or not at all, and so does every later call.
// 0 takes it back.
func (d *Disk) CutAt(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutAt = n
}

// Cut cuts the power now.
func (d *Disk) Cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.isCut = true
}

// WasCut reports whether the power is cut.
func (d *Disk) WasCut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.isCut
}

// SetLimit makes the disk full when its files have n octets in all; 0 is no
// limit. Names cost nothing.
func (d *Disk) SetLimit(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = n
}

// begin is called with the lock held at the start of an operation that counts;
// the operation is done if now is nil, and its error is then. A cut during an operation that
// changes something leaves it among what is pending.
func (d *Disk) begin() error {
	d.init()
	if d.isCut {
		return ErrPowerCut
	}
	d.ops++
	if d.cutAt > 0 && d.ops >= d.cutAt {
		d.isCut = true
	}
	return nil
}

func (d *Disk) end() error {
	if d.isCut {
		return ErrPowerCut
	}
	return nil
}

func (d *Disk) look() error {
	d.init()
	return d.end()
}

func pathErr(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

func split(name string) []string {
	name = filepath.ToSlash(filepath.Clean(name))
	name = strings.TrimPrefix(strings.TrimPrefix(name, filepath.ToSlash(filepath.VolumeName(name))), "/")
	if name == "" || name == "." {
		return nil
	}
	return strings.Split(name, "/")
}

func (d *Disk) find(name string) (*node, error) {
	n := d.root
	for _, p := range split(name) {
		if !n.dir {
			return nil, syscall.ENOTDIR
		}
		if n = n.names[p]; n == nil {
			return nil, syscall.ENOENT
		}
	}
	return n, nil
}

func (d *Disk) parent(name string) (*node, string, error) {
	parts := split(name)
	if len(parts) == 0 {
		return nil, "", syscall.EINVAL
	}
	n := d.root
	for _, p := range parts[:len(parts)-1] {
		if n = n.names[p]; n == nil {
			return nil, "", syscall.ENOENT
		}
		if !n.dir {
			return nil, "", syscall.ENOTDIR
		}
	}
	return n, parts[len(parts)-1], nil
}

func (d *Disk) set(dir *node, name string, to *node) *half {
	if old := dir.names[name]; old != nil {
		if old.links--; old.links == 0 && !old.dir {
			d.used -= int64(len(old.data))
		}
	}
	if to == nil {
		delete(dir.names, name)
	} else {
		dir.names[name] = to
		to.links++
	}
	d.seq++
	h := &half{seq: d.seq, dir: dir, name: name, to: to}
	d.meta = append(d.meta, h)
	return h
}

// OpenFile implements [durable.FS].
func (d *Disk) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.look(); err != nil {
		return nil, pathErr("open", name, err)
	}
	dir, base, err := d.parent(name)
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	n := dir.names[base]
	writes := flag&(os.O_WRONLY|os.O_RDWR) != 0
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, pathErr("open", name, syscall.ENOENT)
	case n != nil && flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0:
		return nil, pathErr("open", name, syscall.EEXIST)
	case n != nil && n.dir && writes:
		return nil, pathErr("open", name, syscall.EISDIR)
	case n == nil:
		if err := d.begin(); err != nil {
			return nil, pathErr("open", name, err)
		}
		n = &node{perm: perm, mod: time.Now()}
		d.set(dir, base, n)
	case flag&os.O_TRUNC != 0 && writes && len(n.data) > 0:
		if err := d.begin(); err != nil {
			return nil, pathErr("open", name, err)
		}
		d.resize(n, 0)
	}
	if err := d.end(); err != nil {
		return nil, pathErr("open", name, err)
	}
	return &handle{d: d, n: n, name: name, flag: flag}, nil
}

// Rename implements [durable.FS].
func (d *Disk) Rename(oldname, newname string) error {
	return d.change("rename", newname, func() error {
		odir, obase, err := d.parent(oldname)
		if err != nil {
			return err
		}
		ndir, nbase, err := d.parent(newname)
		if err != nil {
			return err
		}
		n := odir.names[obase]
		switch to := ndir.names[nbase]; {
		case n == nil:
			return syscall.ENOENT
		case to != nil && to.dir:
			return syscall.EEXIST // as os.Rename
		case to == n:
			return nil // also for two names of a file
		case to != nil && n.dir:
			return syscall.ENOTDIR
		}
		add := d.set(ndir, nbase, n)
		del := d.set(odir, obase, nil)
		del.after = add
		if odir == ndir {
			add.with = del
		}
		return nil
	})
}

// Link implements [durable.FS].
func (d *Disk) Link(oldname, newname string) error {
	return d.change("link", newname, func() error {
		n, err := d.find(oldname)
		if err != nil {
			return err
		}
		dir, base, err := d.parent(newname)
		switch {
		case err != nil:
			return err
		case dir.names[base] != nil:
			return syscall.EEXIST
		case n.dir:
			return syscall.EPERM
		}
		d.set(dir, base, n)
		return nil
	})
}

// Remove implements [durable.FS].
func (d *Disk) Remove(name string) error {
	return d.change("remove", name, func() error {
		dir, base, err := d.parent(name)
		if err != nil {
			return err
		}
		n := dir.names[base]
		if n == nil {
			return syscall.ENOENT
		}
		if n.dir && len(n.names) > 0 {
			return syscall.ENOTEMPTY
		}
		d.set(dir, base, nil)
		return nil
	})
}

// Mkdir implements [durable.FS].
func (d *Disk) Mkdir(name string, perm fs.FileMode) error {
	return d.change("mkdir", name, func() error {
		dir, base, err := d.parent(name)
		if err != nil {
			return err
		}
		if dir.names[base] != nil {
			return syscall.EEXIST
		}
		n := newDir(perm)
		n.links = 0
		d.set(dir, base, n)
		return nil
	})
}

// change runs an operation on names.
func (d *Disk) change(op, name string, f func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.begin()
	if err == nil {
		err = f()
	}
	if err == nil {
		err = d.end()
	}
	if err != nil {
		return pathErr(op, name, err)
	}
	return nil
}

// SyncDir implements [durable.FS].
func (d *Disk) SyncDir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(); err != nil {
		return pathErr("sync", name, err)
	}
	if err := d.end(); err != nil {
		return pathErr("sync", name, err)
	}
	n, err := d.find(name)
	if err != nil {
		return pathErr("sync", name, err)
	}
	if !n.dir {
		return pathErr("sync", name, syscall.ENOTDIR)
	}
	d.syncs++
	for _, h := range d.meta {
		if h.dir == n {
			d.persist(h)
		}
	}
	d.meta = slices.DeleteFunc(d.meta, func(h *half) bool { return h.done })
	return nil
}

func (d *Disk) persist(h *half) {
	if h == nil || h.done {
		return
	}
	d.persist(h.after)
	for _, e := range d.meta {
		if e.seq < h.seq && e.dir == h.dir && e.name == h.name {
			e.done = true // overtaken
		}
	}
	h.done = true
	if h.to == nil {
		delete(h.dir.durable, h.name)
	} else {
		h.dir.durable[h.name] = h.to
	}
	d.persist(h.with)
}

// ReadDir implements [durable.FS].
func (d *Disk) ReadDir(name string) ([]fs.DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.look(); err != nil {
		return nil, pathErr("readdir", name, err)
	}
	n, err := d.find(name)
	if err == nil && !n.dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, pathErr("readdir", name, err)
	}
	var list []fs.DirEntry
	for _, k := range slices.Sorted(maps.Keys(n.names)) {
		list = append(list, fs.FileInfoToDirEntry(n.names[k].info(k)))
	}
	return list, nil
}

// Stat implements [durable.FS].
func (d *Disk) Stat(name string) (fs.FileInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.look(); err != nil {
		return nil, pathErr("stat", name, err)
	}
	n, err := d.find(name)
	if err != nil {
		return nil, pathErr("stat", name, err)
	}
	return n.info(filepath.Base(name)), nil
}

// Lock implements [durable.FS]. Locks do not survive a crash.
func (d *Disk) Lock(name string) (io.Closer, error) {
	f, err := d.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	f.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locks[name] {
		return nil, &durable.LockedError{Name: name, PID: os.Getpid()}
	}
	d.locks[name] = true
	return &diskLock{d: d, name: name}, nil
}

type diskLock struct {
	d    *Disk
	name string
	once sync.Once
}

func (l *diskLock) Close() error {
	l.once.Do(func() {
		l.d.mu.Lock()
		defer l.d.mu.Unlock()
		delete(l.d.locks, l.name)
	})
	return nil
}

// Free implements [durable.FS].
func (d *Disk) Free(string) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.look(); err != nil {
		return 0, err
	}
	if d.limit == 0 {
		return 1 << 62, nil
	}
	return max(0, d.limit-d.used), nil
}

type info struct {
	name string
	n    node
}

func (n *node) info(name string) fs.FileInfo {
	return info{name, node{dir: n.dir, perm: n.perm, mod: n.mod, data: n.data}}
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return int64(len(i.n.data)) }
func (i info) ModTime() time.Time { return i.n.mod }
func (i info) IsDir() bool        { return i.n.dir }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.n.dir {
		return i.n.perm | fs.ModeDir
	}
	return i.n.perm
}
