package maildir

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/internal/ledger"
)

// cleanMark is a record that says that all files were as the journal says, and
// durable, when it was written. No entry begins with its octet.
var cleanMark = []byte{0}

const (
	compactMin    = 1 << 20        // a smaller journal is not worth a new one
	perMessage    = 200            // about what the journal needs for a message
	orphanTmpAge  = 36 * time.Hour // as Maildir says, for files in tmp that are not ours
	validityFile  = "mailspine.uidvalidity"
	validityAhead = 100_000
	repairChunk   = 1000     // ops in one entry of repairs
	maxCommit     = 32 << 20 // octets from which on entries are synced before the next ones are encoded
)

func journalOptions() durable.LogOptions {
	return durable.LogOptions{Magic: "MSPMBOX\n", Version: 1}
}

// A history is what the journal tells of files and folders besides the state: what a crash
// may have kept from following.
type history struct {
	gone    map[string]struct{}    // keys of expunged messages
	dropped map[string]struct{}    // names of deleted mailboxes
	former  map[uint64][]string    // former names of mailboxes, the last one last
	keys    map[string]*ledger.Msg // of all messages
	fresh   bool                   // there was no journal: every file is all that is known of its message
}

func (h *history) note(effects []ledger.Effect) {
	for _, e := range effects {
		switch e.Kind {
		case ledger.KindExpunge:
			h.gone[e.Msg.Key] = struct{}{}
		case ledger.KindDrop:
			h.dropped[e.Name] = struct{}{}
			for _, m := range e.Box.Messages() {
				h.gone[m.Key] = struct{}{}
			}
		case ledger.KindMake:
			delete(h.dropped, e.Name)
		case ledger.KindRename:
			h.former[e.Box.ID] = append(h.former[e.Box.ID], e.Old)
			delete(h.dropped, e.Name)
		}
	}
}

// Load reads the journal, finds the files, and puts right what does not fit.
func (d *driver) Load() (*ledger.State, error) {
	if d.journal != nil {
		d.renew = d.renew || d.journal.Err() != nil
		d.journal.Close() // an error here is of no interest any more
		d.journal = nil
	}
	_, err := d.fsys.Stat(filepath.Join(d.dir, "cur"))
	existed := err == nil
	if _, err := d.fsys.Stat(filepath.Join(d.dir, journalName)); err != nil {
		// Also when it is only the journal that is missing: the folders have to last before it does.
		if err := d.makeBox(mailbox.Inbox); err != nil {
			return nil, err
		}
	}
	d.stuck = false
	if !d.loaded {
		d.sweep()
	}
	st, h, clean, err := d.replay()
	var bad *durable.CorruptError
	if errors.As(err, &bad) || errors.Is(err, ledger.ErrCorrupt) {
		aside := filepath.Join(d.dir, journalName+".damaged")
		d.log.Error("maildir: the log is damaged; mailboxes get new UIDs", "kept", aside, "err", err)
		if err := d.fsys.Rename(filepath.Join(d.dir, journalName), aside); err != nil {
			return nil, err
		}
		st, h, clean, err = d.replay()
	}
	if err != nil {
		return nil, err
	}
	// The names in it may be what is left of a step whose sync failed.
	if err := d.fsys.SyncDir(d.dir); err != nil {
		d.journal.Close()
		d.journal = nil
		return nil, err
	}
	r := &repairer{d: d, st: st, h: h, clean: clean, adopted: map[string]struct{}{}, box: st.NextBox(), validity: st.NextValidity(time.Now())}
	if h.fresh && existed {
		err = r.revalidate()
	}
	if err == nil {
		err = r.repair()
	}
	if err != nil {
		d.journal.Close()
		d.journal = nil
		return nil, err
	}
	for key := range h.keys {
		d.land(key)
	}
	for _, b := range st.Boxes() {
		d.land(boxKey(b.Name))
	}
	d.base = 64<<10 + perMessage*int64(len(h.keys))
	// If a sync failed, now or in an earlier process, what was written before it may
	// look as if it were on the disk, and not be there. A new file has all of it.
	if d.renew || !clean && !h.fresh {
		if err := d.compact(st); err != nil && (d.renew || d.journal == nil) {
			if d.journal != nil {
				d.journal.Close()
				d.journal = nil
			}
			return nil, fmt.Errorf("maildir: the log of an unclean end could not be written anew: %w", err)
		} else if err != nil { // as when the disk is full; most unclean ends had no failed sync
			d.log.Warn("maildir: the log of an unclean end could not be written anew", "err", err)
		}
	}
	d.loaded = true
	return st, nil
}

// sweep removes what an earlier process left unfinished. What cannot be removed
// stays until the next time.
func (d *driver) sweep() {
	d.fsys.Remove(filepath.Join(d.dir, newJournal))
	d.fsys.Remove(filepath.Join(d.dir, newJournal+durable.TempSuffix))
	d.fsys.Remove(filepath.Join(d.dir, journalName+durable.TempSuffix))
	tmp := filepath.Join(d.dir, "tmp")
	list, _ := d.fsys.ReadDir(tmp)
	for _, e := range list {
		old := strings.HasSuffix(e.Name(), tmpSuffix)
		if fi, err := e.Info(); !old && err == nil {
			old = time.Since(fi.ModTime()) > orphanTmpAge
		}
		if old {
			d.fsys.Remove(filepath.Join(tmp, e.Name()))
		}
	}
	list, _ = d.fsys.ReadDir(d.dir)
	for _, e := range list {
		if strings.HasPrefix(e.Name(), trashPrefix) {
			durable.RemoveAll(d.fsys, filepath.Join(d.dir, e.Name()))
		}
	}
}

// replay opens the journal, or makes one, and returns what it says.
func (d *driver) replay() (st *ledger.State, h *history, clean bool, err error) {
	st = ledger.NewState(d.maxTombs)
	h = &history{gone: map[string]struct{}{}, dropped: map[string]struct{}{}, former: map[uint64][]string{}, keys: map[string]*ledger.Msg{}}
	name := filepath.Join(d.dir, journalName)
	j, err := durable.OpenLog(d.fsys, name, journalOptions(), func(_ durable.Location, meta []byte) error {
		clean = string(meta) == string(cleanMark)
		if clean {
			return nil
		}
		e, err := ledger.Decode(meta)
		if err != nil {
			return err
		}
		effects, err := st.Apply(e)
		h.note(effects)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		h.fresh = true
		j, err = durable.CreateLog(d.fsys, name, journalOptions())
	}
	if err != nil {
		return nil, nil, false, err
	}
	d.journal, d.marked = j, clean
	for _, b := range st.Boxes() {
		for _, m := range b.Messages() {
			h.keys[m.Key] = m
		}
	}
	return st, h, clean, nil
}

// A repairer collects ops that make the state fit the files.
type repairer struct {
	d     *driver
	st    *ledger.State
	h     *history
	clean bool
	ops   ledger.Entry

	box      uint64
	validity uint32

	boxes   []found
	adopted map[string]struct{} // folders with files that get a UID
	marks   map[string]bool     // of the originals of copies: those that have their file
}

// found is what is in the folder of a mailbox.
type found struct {
	name      string
	box       *ledger.Box // nil: it is new
	strangers []string    // files that belong to no message
	flags     []flagged
}

// flagged is a message whose file has other flags.
type flagged struct {
	msg *ledger.Msg
	in  string
}

// repair makes folders and state fit. Nothing is told of it before it is in the journal.
func (r *repairer) repair() error {
	d, st, h := r.d, r.st, r.h
	if err := r.folders(); err != nil {
		return err
	}
	for _, o := range r.ops {
		if o.Kind == ledger.KindMake {
			if err := d.makeBox(o.Name); err != nil { // those above the ones that were found may have none
				return err
			}
		}
	}
	if err := d.syncDirs(r.adopted); err != nil { // nobody may have done it
		return err
	}
	for chunk := range slices.Chunk(r.ops, repairChunk) {
		if err := d.Commit([]ledger.Entry{chunk}); err != nil {
			return err
		}
		effects, err := st.Apply(chunk)
		if err != nil {
			return err
		}
		h.note(effects)
		for _, e := range effects {
			if e.Kind == ledger.KindAdd {
				h.keys[e.Msg.Key] = e.Msg
			}
		}
	}
	return nil
}

// revalidate finds UIDValidities for an account that may have given some and lost its log: they
// are as far ahead of the clock as an account can get that makes one mailbox after
// the other, and a file remembers them in case that happens again.
func (r *repairer) revalidate() error {
	file := filepath.Join(r.d.dir, validityFile)
	raw, err := durable.ReadFile(r.d.fsys, file, 100)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	last, _ := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 32) // 0 if there is none
	r.validity = max(r.validity, uint32(last)) + validityAhead
	return durable.WriteFile(r.d.fsys, file, []byte(strconv.FormatUint(uint64(r.validity), 10)+"\n"), 0o600)
}

// folders sees that each mailbox has its folder and each folder its mailbox, and
// looks into them.
func (r *repairer) folders() error {
	list, err := r.d.fsys.ReadDir(r.d.dir)
	if err != nil {
		return err
	}
	folders := map[string]bool{} // by their encoded names
	for _, e := range list {
		if e.IsDir() && strings.HasPrefix(e.Name(), ".") {
			folders[e.Name()] = true
		}
	}
	for _, b := range r.st.Boxes() {
		dir := encodeBox(b.Name)
		if dir == "" || folders[dir] {
			continue
		}
		// A rename that did not come to an end, or not even to the folder. At most
		// one is unfinished, so a former name that has a folder and no mailbox is it.
		former := r.h.former[b.ID]
		for i := len(former) - 1; i >= 0 && !folders[dir]; i-- {
			old := encodeBox(former[i])
			if !folders[old] || r.st.Box(former[i]) != nil {
				continue
			}
			if err := r.d.renameBox(former[i], b.Name); err != nil {
				return err
			}
			delete(folders, old)
			folders[dir] = true
		}
	}
	for _, b := range r.st.Boxes() {
		has, err := r.d.hasBox(b.Name)
		if err == nil && !has {
			err = r.d.makeBox(b.Name)
		}
		if err != nil {
			return err
		}
		delete(folders, encodeBox(b.Name))
		if err := r.list(b.Name, b); err != nil {
			return err
		}
	}
	if r.st.Box(mailbox.Inbox) == nil {
		if err := r.list(mailbox.Inbox, nil); err != nil {
			return err
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(folders)) {
		if err := r.stranger(dir); err != nil {
			return err
		}
	}
	r.marks = map[string]bool{}
	for key, m := range r.h.keys {
		if m.File != "" {
			r.marks[ledger.CopyMark(key)] = true
		}
	}
	for _, f := range r.boxes {
		if err := r.files(f); err != nil {
			return err
		}
	}
	return nil
}

// make adds a mailbox to the repairs, with those above it that are missing, and
// returns its number.
func (r *repairer) make(name string) (id uint64) {
	for _, n := range append(mailbox.Above(name), name) {
		if b := r.st.Box(n); b != nil {
			id = b.ID
			continue
		}
		if i := slices.IndexFunc(r.ops, func(o ledger.Op) bool { return o.Kind == ledger.KindMake && o.Name == n }); i >= 0 {
			id = r.ops[i].Box
			continue
		}
		id = r.box
		r.ops = append(r.ops, ledger.Op{Kind: ledger.KindMake, Box: id, Name: n, Validity: r.validity})
		r.box++
		r.validity++
	}
	return id
}

// stranger looks at a folder that belongs to no mailbox: of a deletion that did not come to an
// end, or of a mailbox that somebody else made.
func (r *repairer) stranger(dir string) error {
	path := filepath.Join(r.d.dir, dir)
	name, ok := decodeBox(dir)
	if isHashed(dir) {
		raw, err := durable.ReadFile(r.d.fsys, filepath.Join(path, nameFile), mailbox.MaxName)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		name = string(raw)
		clean, cerr := mailbox.CleanName(name)
		ok = cerr == nil && clean == name && encodeBox(name) == dir
	}
	if !ok {
		r.d.log.Warn("maildir: a folder has no name of ours and is left alone", "folder", path)
		return nil
	}
	if r.inFlight(boxKey(name)) {
		return nil
	}
	if _, dropped := r.h.dropped[name]; dropped && !r.clean {
		others, err := r.mail(path)
		if err != nil {
			return err
		}
		if !others {
			return r.d.discard(path)
		}
	}
	if _, err := r.d.fsys.Stat(filepath.Join(path, "cur")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no Maildir, or one that is being made
		}
		return err
	}
	if err := r.d.makeBox(name); err != nil {
		return err
	}
	return r.list(name, nil)
}

// mail reports whether a mailbox's folder has messages besides those that were expunged.
func (r *repairer) mail(dir string) (bool, error) {
	for _, sub := range []string{"cur", "new"} {
		list, err := r.d.fsys.ReadDir(filepath.Join(dir, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		for _, e := range list {
			key, _, ok := parseName(e.Name())
			if _, gone := r.h.gone[key]; ok && !gone && !e.IsDir() {
				return true, nil
			}
		}
	}
	return false, nil
}

// list compares the files of a mailbox with its messages. b is nil for one
// that is new.
func (r *repairer) list(name string, b *ledger.Box) error {
	f := found{name: name, box: b}
	seen := map[string]bool{}
	mine := map[string]*ledger.Msg{}
	if b != nil {
		for _, m := range b.Messages() {
			mine[m.Key] = m
		}
	}
	// cur first: of a file with a name in both, that in new is the old one.
	for _, sub := range []string{"cur", "new"} {
		dir := filepath.Join(r.d.boxDir(name), sub)
		list, err := r.d.fsys.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range list {
			key, in, ok := parseName(e.Name())
			if !ok || e.IsDir() {
				continue
			}
			file := sub + "/" + e.Name()
			m := mine[key]
			_, gone := r.h.gone[key]
			switch {
			case seen[key] && m != nil:
				r.remove(dir, e.Name())
			case m != nil:
				seen[key] = true
				m.File = file
				if in != info(m.Flags) {
					f.flags = append(f.flags, flagged{m, in})
				}
			case seen[key]:
				r.d.log.Warn("maildir: a file has the name of another one and is left alone", "file", filepath.Join(dir, e.Name()))
			case gone && r.h.keys[key] == nil:
				r.remove(dir, e.Name())
			case r.inFlight(key):
			default:
				seen[key] = true
				f.strangers = append(f.strangers, file)
			}
		}
	}
	slices.SortFunc(f.strangers, func(a, b string) int { return strings.Compare(a[4:], b[4:]) }) // by time of arrival, as names begin with that
	r.boxes = append(r.boxes, f)
	return nil
}

// files adds to the repairs what the files of a mailbox ask for.
func (r *repairer) files(f found) error {
	var added []*ledger.Op
	deliveries := map[ledger.Hash]struct{}{} // of added
	for _, file := range f.strangers {
		key, in, _ := parseName(file[4:])
		op := &ledger.Op{Kind: ledger.KindAdd, Flags: [][]mailbox.Flag{withInfo(nil, in)}, Key: key, File: file}
		var mark string
		op.Delivery, mark = ledger.Origin(key)
		switch m := r.h.keys[key]; {
		case m == nil:
			op.EmailID = string(mailspine.NewMsgID())
		case m.File == "":
			// Somebody moved it here from another mailbox. There it is expunged below,
			// or was above.
			op.Flags[0], op.EmailID, op.Delivery = withInfo(m.Flags, in), m.EmailID, ledger.Hash{}
		default:
			r.d.log.Warn("maildir: a file has the name of a message of another mailbox and is left alone", "file", r.d.path(f.name, file))
			continue
		}
		if mark != "" && r.marks[mark] && !r.h.fresh {
			// A copy or a move that did not come to its end. Nothing is lost with
			// it: the original is here.
			r.remove(filepath.Join(r.d.boxDir(f.name), file[:3]), file[4:])
			continue
		}
		if op.Delivery != (ledger.Hash{}) && !r.h.fresh {
			_, twice := deliveries[op.Delivery]
			if twice || f.box != nil && r.st.Delivered(op.Delivery, f.box.ID) {
				// Of a delivery that failed and could not be taken back. It was repeated
				// since, and that is the message.
				r.remove(filepath.Join(r.d.boxDir(f.name), file[:3]), file[4:])
				continue
			}
			deliveries[op.Delivery] = struct{}{}
		}
		fi, err := r.d.fsys.Stat(r.d.path(f.name, file))
		if errors.Is(err, fs.ErrNotExist) {
			continue // somebody renames it just now; the next load finds it
		}
		if err != nil {
			return err
		}
		r.adopted[filepath.Join(r.d.boxDir(f.name), file[:3])] = struct{}{}
		op.Date, op.Size = ledger.ClampDate(fi.ModTime()), fi.Size()
		added = append(added, op)
	}
	id, next, modseq := uint64(0), mailbox.UID(1), mailbox.ModSeq(2)
	if f.box != nil {
		id, next, modseq = f.box.ID, f.box.NextUID(), f.box.NextModSeq()
	} else {
		if len(added) == 0 && f.name != mailbox.Inbox && !r.h.fresh {
			// Of a mailbox that was just being made, or somebody else's; it becomes one when
			// it has a message, or is created.
			return nil
		}
		id = r.make(f.name)
	}
	if f.box != nil {
		for _, x := range f.flags {
			// After a clean end somebody else changed the flags; otherwise a
			// crash did not let the name follow.
			if !r.clean {
				r.d.rename(f.box.Name, x.msg)
				continue
			}
			r.ops = append(r.ops, ledger.Op{Kind: ledger.KindFlags, Box: id, ModSeq: modseq, UIDs: []mailbox.UID{x.msg.UID},
				Flags: [][]mailbox.Flag{withInfo(x.msg.Flags, x.in)}})
			modseq++
		}
		var lost []mailbox.UID
		for _, m := range f.box.Messages() {
			if m.File == "" {
				lost = append(lost, m.UID)
			}
		}
		if len(lost) > 0 {
			r.d.log.Warn("maildir: messages without a file are expunged", "mailbox", f.name, "messages", len(lost))
			r.ops = append(r.ops, ledger.Op{Kind: ledger.KindExpunge, Box: id, ModSeq: modseq, UIDs: lost})
			modseq++
		}
	}
	for _, o := range added {
		o.Box, o.UIDs, o.ModSeq = id, []mailbox.UID{next}, modseq
		r.ops = append(r.ops, *o)
		next++
	}
	if n := len(added); n > 0 {
		r.d.log.Info("maildir: files without a UID got one", "mailbox", f.name, "messages", n)
	}
	return nil
}

func (r *repairer) remove(dir, name string) {
	if err := r.d.fsys.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.d.log.Warn("maildir: a file that should be gone stays", "file", filepath.Join(dir, name), "err", err)
		r.d.stuck = true
	}
	r.d.touch(dir)
}

func (r *repairer) inFlight(key string) bool {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	_, ok := r.d.flying[key]
	return ok
}

// Commit appends entries to the journal.
func (d *driver) Commit(entries []ledger.Entry) error {
	if d.journal == nil {
		return fmt.Errorf("maildir: %s is not open", journalName)
	}
	d.marked = false
	var recs []durable.Record
	size := 0
	for i, e := range entries {
		r := durable.Record{Meta: e.Append(nil)}
		recs, size = append(recs, r), size+len(r.Meta)
		if size < maxCommit && i < len(entries)-1 {
			continue
		}
		if _, err := d.journal.Append(recs...); err != nil {
			return err
		}
		recs, size = nil, 0
	}
	return nil
}

const newJournal = journalName + ".new"

// mayCompact replaces the journal if it has grown too much. That it cannot be
// done now is no error, unless there is no journal afterwards.
func (d *driver) mayCompact(st *ledger.State) error {
	if size := d.journal.Size(); d.stuck || size < compactMin || size < 4*d.base {
		return nil // stuck: the old one knows what there is still to do
	}
	err := d.compact(st)
	if err == nil || d.journal == nil {
		return err
	}
	d.log.Warn("maildir: the log could not be written anew", "err", err)
	d.base *= 2 // not at once again
	return nil
}

// compact replaces the journal by one that has only what is needed now. After an error the
// journal is the old one, or nil.
func (d *driver) compact(st *ledger.State) error {
	if d.stuck {
		return errors.New("files could not be removed or renamed")
	}
	// The new journal does not know what was renamed and removed, so that has to last.
	if err := d.syncTouched(); err != nil {
		return err
	}
	name, tmp := filepath.Join(d.dir, journalName), filepath.Join(d.dir, newJournal)
	if err := d.writeJournal(tmp, st); err != nil {
		d.fsys.Remove(tmp)
		return err
	}
	d.journal.Close()
	d.journal = nil
	if err := d.fsys.Rename(tmp, name); err != nil {
		return err
	}
	if err := d.fsys.SyncDir(d.dir); err != nil {
		return err
	}
	j, err := durable.OpenLog(d.fsys, name, journalOptions(), func(durable.Location, []byte) error { return nil })
	if err != nil {
		return err
	}
	d.journal, d.base, d.marked, d.renew = j, j.Size(), false, false
	return nil
}

func (d *driver) writeJournal(name string, st *ledger.State) error {
	d.fsys.Remove(name)
	j, err := durable.CreateLog(d.fsys, name, journalOptions())
	if err != nil {
		return err
	}
	var batch []durable.Record
	size := 0
	for e := range st.Snapshot {
		r := durable.Record{Meta: e.Append(nil)}
		batch, size = append(batch, r), size+len(r.Meta)
		if size > 4<<20 {
			if _, err := j.Append(batch...); err != nil {
				j.Close()
				return err
			}
			batch, size = nil, 0
		}
	}
	if _, err := j.Append(batch...); err != nil {
		j.Close()
		return err
	}
	return j.Close()
}
