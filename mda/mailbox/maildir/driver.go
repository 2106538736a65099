package maildir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/internal/ledger"
)

// A driver keeps the files of one account.
type driver struct {
	fsys     durable.FS
	dir      string // of the account
	maxTombs int
	log      *slog.Logger

	// Load, Commit, Settle and Close only, which take turns.
	journal *durable.Log
	loaded  bool  // once before
	base    int64 // what the journal would have to be, in octets, when it was last new
	marked  bool  // the last record of the journal is the mark of a clean end
	renew   bool  // a sync of the journal failed: it has to be written anew before it is used
	stuck   bool  // files are not as the journal says: no mark, no new journal before the next load

	mu      sync.Mutex
	flying  map[string]struct{} // keys of files whose entry is not committed yet
	touched map[string]struct{} // folders with renames and removals that are not synced
}

var _ ledger.Driver = (*driver)(nil)

const (
	journalName = "mailspine.log"
	tmpSuffix   = ".mailspine" // of our files in tmp
	trashPrefix = "mailspine.trash."
)

var subdirs = [...]string{"cur", "new", "tmp"}

func (d *driver) boxDir(name string) string { return filepath.Join(d.dir, encodeBox(name)) }

// path returns where a file of a mailbox is.
func (d *driver) path(box, file string) string {
	return filepath.Join(d.boxDir(box), filepath.FromSlash(file))
}

func (d *driver) touch(dir string) {
	d.mu.Lock()
	d.touched[dir] = struct{}{}
	d.mu.Unlock()
}

func (d *driver) fly(key string) {
	d.mu.Lock()
	d.flying[key] = struct{}{}
	d.mu.Unlock()
}

func (d *driver) land(key string) {
	d.mu.Lock()
	delete(d.flying, key)
	d.mu.Unlock()
}

// Stage writes the message to a new file in tmp and syncs it.
func (d *driver) Stage(ctx context.Context, msg mailspine.Content) (ledger.Staged, error) {
	name, err := d.writeTmp(func(f durable.File) error { return ledger.Write(ctx, f, msg) })
	if err != nil {
		return nil, err
	}
	return &staged{d: d, path: name, size: msg.Size()}, nil
}

// writeTmp makes a file in tmp with what write writes, synced, or nothing.
func (d *driver) writeTmp(write func(durable.File) error) (string, error) {
	name := filepath.Join(d.dir, "tmp", string(mailspine.NewMsgID())+tmpSuffix)
	f, err := d.fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		d.fsys.Remove(name) // or the next load does
		return "", err
	}
	return name, nil
}

type staged struct {
	d    *driver
	path string // "": it has a place
	size int64
}

func (s *staged) Size() int64 { return s.size }

func (s *staged) Discard() {
	if s.path != "" {
		s.d.fsys.Remove(s.path) // or the next load does
	}
}

// Place gives the file its names and syncs their folders: links for all but the
// last, and a rename for that.
func (d *driver) Place(s ledger.Staged, to []ledger.Place) error {
	st := s.(*staged)
	dirs := map[string]struct{}{}
	for i := range to {
		p := &to[i]
		file := fileName(p.Key, p.Flags, false)
		dst := d.path(p.Box, file)
		d.fly(p.Key)
		var err error
		if i < len(to)-1 {
			err = d.link(st.path, dst)
		} else if err = d.fsys.Rename(st.path, dst); err == nil {
			st.path = ""
		}
		if err != nil {
			d.land(p.Key)
			return err
		}
		p.File = file
		dirs[filepath.Dir(dst)] = struct{}{}
	}
	return d.syncDirs(dirs)
}

func (d *driver) syncDirs(dirs map[string]struct{}) error {
	for dir := range dirs {
		if err := d.fsys.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// link gives a file one more name, or a copy where that cannot be.
func (d *driver) link(src, dst string) error {
	err := d.fsys.Link(src, dst)
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) {
		return err
	}
	// Not on this file system, or too many links: whatever it is, a copy shows
	// whether it can be done.
	in, err := d.fsys.OpenFile(src, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp, err := d.writeTmp(func(f durable.File) error {
		_, err := io.Copy(struct{ io.Writer }{f}, struct{ io.Reader }{in})
		return err
	})
	if err != nil {
		return err
	}
	if err := d.fsys.Rename(tmp, dst); err != nil {
		d.fsys.Remove(tmp)
		return err
	}
	return nil
}

func (d *driver) Link(b *ledger.Box, m *ledger.Msg, to *ledger.Place) error {
	if m.File == "" {
		return fs.ErrNotExist
	}
	file := fileName(to.Key, to.Flags, false)
	d.fly(to.Key)
	if err := d.link(d.path(b.Name, m.File), d.path(to.Box, file)); err != nil {
		d.land(to.Key)
		return err
	}
	to.File = file
	return nil
}

func (d *driver) Sync(to []ledger.Place) error {
	dirs := map[string]struct{}{}
	for _, p := range to {
		if p.File != "" {
			dirs[filepath.Dir(d.path(p.Box, p.File))] = struct{}{}
		}
	}
	return d.syncDirs(dirs)
}

func (d *driver) Unplace(to []ledger.Place) {
	for _, p := range to {
		path := d.path(p.Box, p.File)
		if err := d.fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			// It gets a UID at the next load: better twice than not at all.
			d.log.Warn("maildir: a file that was not delivered stays", "file", path, "err", err)
		}
		d.land(p.Key)
	}
}

// boxKey is what stands for a mailbox in flying: no key has a slash.
func boxKey(name string) string { return "/" + name }

func (d *driver) MakeBox(name string) error {
	d.fly(boxKey(name))
	return d.makeBox(name)
}

// makeBox makes the folders of a mailbox that are missing, and makes sure that all of them
// are durable: those that are there may be what is left of an attempt that failed.
func (d *driver) makeBox(name string) error {
	dir := d.boxDir(name)
	for _, sub := range subdirs {
		if err := durable.MkdirAll(d.fsys, filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	if err := d.writeName(name); err != nil {
		return err
	}
	if err := d.fsys.SyncDir(dir); err != nil {
		return err
	}
	return d.fsys.SyncDir(filepath.Dir(dir))
}

// hasBox reports whether the folders of a mailbox are there.
func (d *driver) hasBox(name string) (bool, error) {
	for _, sub := range subdirs {
		if _, err := d.fsys.Stat(filepath.Join(d.boxDir(name), sub)); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return true, nil
}

// writeName notes the name of a mailbox whose folder's name does not tell it.
func (d *driver) writeName(name string) error {
	dir := encodeBox(name)
	if !isHashed(dir) {
		return nil
	}
	file := filepath.Join(d.dir, dir, nameFile)
	if was, err := durable.ReadFile(d.fsys, file, mailbox.MaxName); err == nil && string(was) == name {
		return nil
	}
	return durable.WriteFile(d.fsys, file, []byte(name), 0o600)
}

// UnmakeBox removes only what is empty: somebody may have delivered meanwhile.
func (d *driver) UnmakeBox(name string) {
	dir := d.boxDir(name)
	empty := true
	for _, sub := range subdirs {
		if err := d.fsys.Remove(filepath.Join(dir, sub)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			empty = false
		}
	}
	if empty && isHashed(encodeBox(name)) { // else the name is still wanted
		d.fsys.Remove(filepath.Join(dir, nameFile))
	}
	d.fsys.Remove(dir) // what stays is no mailbox for the next load
	d.land(boxKey(name))
}

// discard removes a folder: by a rename, which is atomic, and file by file then. What is left
// of it is removed at the next load.
func (d *driver) discard(dir string) error {
	trash := filepath.Join(d.dir, trashPrefix+string(mailspine.NewMsgID()))
	if err := d.fsys.Rename(dir, trash); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	d.touch(d.dir)
	if err := durable.RemoveAll(d.fsys, trash); err != nil {
		d.log.Warn("maildir: a deleted folder is not removed yet", "folder", trash, "err", err)
	}
	return nil
}

func (d *driver) Body(b *ledger.Box, m *ledger.Msg) (mailbox.Body, error) {
	if m.File == "" {
		return nil, fs.ErrNotExist
	}
	f, err := d.fsys.OpenFile(d.path(b.Name, m.File), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() != m.Size {
		err = fmt.Errorf("maildir: %s has %d octets, not the %d that were delivered", f.Name(), fi.Size(), m.Size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return body{f, m.Size}, nil
}

// body is an open file, which outlives its name.
type body struct {
	durable.File
	size int64
}

func (b body) Size() int64 { return b.size }

// Settle lets the files follow.
func (d *driver) Settle(st *ledger.State, effects []ledger.Effect) error {
	for _, e := range effects {
		switch e.Kind {
		case ledger.KindMake:
			d.land(boxKey(e.Name))
		case ledger.KindAdd:
			d.land(e.Msg.Key)
			d.rename(e.Name, e.Msg) // if its flags changed since its file got a name
		case ledger.KindFlags:
			d.rename(e.Name, e.Msg)
		case ledger.KindExpunge:
			if e.Msg.File == "" {
				continue
			}
			path := d.path(e.Name, e.Msg.File)
			if err := d.fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				d.log.Warn("maildir: an expunged file is not removed yet", "file", path, "err", err)
				d.stuck = true
			}
			d.touch(filepath.Dir(path))
		case ledger.KindDrop:
			if err := d.discard(d.boxDir(e.Name)); err != nil {
				return err
			}
		case ledger.KindRename:
			if err := d.renameBox(e.Old, e.Name); err != nil {
				return err
			}
		}
	}
	return d.mayCompact(st)
}

// rename gives the file of a message the name that its flags ask for, in the mailbox of that name.
func (d *driver) rename(box string, m *ledger.Msg) {
	if m.File == "" {
		return
	}
	want := fileName(m.Key, m.Flags, strings.HasPrefix(m.File, "cur/"))
	if want == m.File {
		return
	}
	from, to := d.path(box, m.File), d.path(box, want)
	if err := d.fsys.Rename(from, to); err != nil {
		d.log.Warn("maildir: a file does not get the name that its flags ask for", "file", from, "err", err)
		d.stuck = true
		return
	}
	m.File = want
	d.touch(filepath.Dir(from))
	d.touch(filepath.Dir(to))
}

// renameBox renames the folder of a mailbox, durably.
func (d *driver) renameBox(from, to string) error {
	if err := d.fsys.Rename(d.boxDir(from), d.boxDir(to)); err != nil {
		return err
	}
	if err := d.writeName(to); err != nil {
		return err
	}
	return d.fsys.SyncDir(d.dir)
}

// Close marks a clean end, if it is one.
func (d *driver) Close(st *ledger.State) error {
	if d.journal == nil {
		return nil
	}
	var err error
	if st != nil && !d.stuck && !d.marked && d.journal.Err() == nil {
		if err = d.syncTouched(); err == nil {
			_, err = d.journal.Append(durable.Record{Meta: cleanMark})
		}
		if err != nil {
			// It only means that flags changed by other programs are not taken over.
			d.log.Warn("maildir: no clean end", "err", err)
		}
	}
	err = d.journal.Close()
	d.journal = nil
	return err
}

// syncTouched makes all renames and removals durable.
func (d *driver) syncTouched() error {
	d.mu.Lock()
	dirs := d.touched
	d.touched = map[string]struct{}{}
	d.mu.Unlock()
	for dir := range dirs {
		if err := d.fsys.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.mu.Lock()
			for k := range dirs {
				d.touched[k] = struct{}{}
			}
			d.mu.Unlock()
			return err
		}
	}
	return nil
}
