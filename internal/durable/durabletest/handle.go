package durabletest

import (
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// A handle is an open file of a Disk. It keeps its file readable after the
// last name is gone, as Unix does.
type handle struct {
	d    *Disk
	n    *node
	name string
	flag int

	// guarded by d.mu
	pos    int64
	closed bool
}

func (h *handle) Name() string { return h.name }

func (h *handle) check() error {
	if h.closed {
		return pathErr("use", h.name, fs.ErrClosed)
	}
	if err := h.d.look(); err != nil {
		return pathErr("use", h.name, err)
	}
	return nil
}

func (h *handle) Read(p []byte) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	n, err := h.readAt(p, h.pos)
	h.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	return h.readAt(p, off)
}

func (h *handle) readAt(p []byte, off int64) (int, error) {
	if err := h.check(); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, pathErr("read", h.name, syscall.EINVAL)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= int64(len(h.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) Write(p []byte) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	n, err := h.writeAt(p, h.pos)
	h.pos += int64(n)
	return n, err
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	return h.writeAt(p, off)
}

func (h *handle) writeAt(p []byte, off int64) (int, error) {
	if err := h.check(); err != nil {
		return 0, err
	}
	if h.flag&(os.O_WRONLY|os.O_RDWR) == 0 {
		return 0, pathErr("write", h.name, syscall.EBADF)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := h.d.begin(); err != nil {
		return 0, pathErr("write", h.name, err)
	}
	var full error
	if grow := off + int64(len(p)) - int64(len(h.n.data)); h.d.limit > 0 && grow > h.d.limit-h.d.used {
		room := max(0, int64(len(h.n.data))+max(0, h.d.limit-h.d.used)-off)
		p, full = p[:min(room, int64(len(p)))], pathErr("write", h.name, syscall.ENOSPC)
	}
	if len(p) > 0 {
		h.d.seq++
		w := write{seq: h.d.seq, off: off, data: append([]byte(nil), p...)}
		h.n.pending = append(h.n.pending, w)
		old := len(h.n.data)
		h.n.data = w.apply(h.n.data)
		h.grown(old)
		h.n.mod = time.Now()
		h.d.written += int64(len(p))
	}
	if err := h.d.end(); err != nil {
		return 0, pathErr("write", h.name, err)
	}
	return len(p), full
}

func (h *handle) grown(old int) {
	if h.n.links > 0 {
		h.d.used += int64(len(h.n.data) - old)
	}
}

func (h *handle) Truncate(size int64) error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if err := h.check(); err != nil {
		return err
	}
	if size < 0 || h.flag&(os.O_WRONLY|os.O_RDWR) == 0 {
		return pathErr("truncate", h.name, syscall.EINVAL)
	}
	if err := h.d.begin(); err != nil {
		return pathErr("truncate", h.name, err)
	}
	h.d.resize(h.n, size)
	if err := h.d.end(); err != nil {
		return pathErr("truncate", h.name, err)
	}
	return nil
}

func (d *Disk) resize(n *node, size int64) {
	d.seq++
	w := write{seq: d.seq, off: size, cut: true}
	n.pending = append(n.pending, w)
	old := len(n.data)
	n.data = w.apply(n.data)
	if n.links > 0 {
		d.used += int64(len(n.data) - old)
	}
	n.mod = time.Now()
}

// Sync makes the content durable, but not the name.
func (h *handle) Sync() error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if err := h.check(); err != nil {
		return err
	}
	if err := h.d.begin(); err != nil {
		return pathErr("sync", h.name, err)
	}
	if err := h.d.end(); err != nil {
		return pathErr("sync", h.name, err)
	}
	h.d.syncs++
	for _, w := range h.n.pending {
		h.n.synced = w.apply(h.n.synced)
	}
	h.n.pending = nil
	return nil
}

// loseDirty does what kernels do when a sync fails: the pages count as clean,
// are still read by the process, and never reach the disk.
func (h *handle) loseDirty() {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	h.n.pending = nil
}

func (h *handle) Stat() (fs.FileInfo, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if err := h.check(); err != nil {
		return nil, err
	}
	return h.n.info(h.name), nil
}

func (h *handle) Close() error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.closed {
		return pathErr("close", h.name, fs.ErrClosed)
	}
	h.closed = true
	return nil
}

// apply returns b with the change made to it, in place where it can be.
func (w write) apply(b []byte) []byte {
	if w.cut {
		if w.off <= int64(len(b)) {
			return b[:w.off]
		}
		return grow(b, w.off)
	}
	b = grow(b, w.off+int64(len(w.data)))
	copy(b[w.off:], w.data)
	return b
}

// grow returns b with at least n octets, the new ones zero.
func grow(b []byte, n int64) []byte {
	old := int64(len(b))
	if n <= old {
		return b
	}
	if n <= int64(cap(b)) {
		b = b[:n]
		clear(b[old:])
		return b
	}
	c := make([]byte, n, n+n/2)
	copy(c, b)
	return c
}
