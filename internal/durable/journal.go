package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
)

// A Journal is a directory with one [Log] of records, which its owner replaces by a shorter one when
// much of it does not count any more. The directory is locked while it is open. The log has a number in its
// name: a new one takes the place of the old with the next number, and what an interrupted change left
// behind is removed when the journal is opened.
//
// A Journal is not safe for concurrent use: its owner has a lock of its own.
type Journal struct {
	fsys   FS
	dir    string
	opt    LogOptions
	prefix string
	lock   io.Closer
	log    *Log
	number uint64
	failed error // it is not known which log the next opening finds
}

const (
	journalSuffix = ".log"
	journalLock   = "lock"
)

// OpenJournal opens the journal in a directory, and makes what is missing of it. prefix begins the names of its logs. replay is called for
// each record, in order; an error of it ends the opening. Another one that has the directory open is an error, and so are a damaged log
// and one of a newer format.
func OpenJournal(fsys FS, dir, prefix string, o LogOptions, replay func(loc Location, meta []byte) error) (*Journal, error) {
	j := &Journal{fsys: Or(fsys), dir: dir, opt: o, prefix: prefix}
	if err := j.open(replay); err != nil {
		if j.log != nil {
			j.log.Close()
		}
		if j.lock != nil {
			j.lock.Close()
		}
		return nil, err
	}
	return j, nil
}

// JournalName is the name of a journal's log of a number.
func JournalName(prefix string, n uint64) string {
	return fmt.Sprintf("%s%016d%s", prefix, n, journalSuffix)
}

func (j *Journal) name(n uint64) string { return JournalName(j.prefix, n) }
func (j *Journal) path(n uint64) string { return filepath.Join(j.dir, j.name(n)) }

func (j *Journal) open(replay func(loc Location, meta []byte) error) (err error) {
	if err := MkdirAll(j.fsys, j.dir, 0o700); err != nil {
		return err
	}
	// An earlier process may have been killed between making the directory and the sync of its name.
	if err := j.fsys.SyncDir(filepath.Dir(j.dir)); err != nil {
		return err
	}
	if j.lock, err = j.fsys.Lock(filepath.Join(j.dir, journalLock)); err != nil {
		return err
	}
	list, err := j.fsys.ReadDir(j.dir)
	if err != nil {
		return err
	}
	var old []string
	for _, e := range list {
		name := e.Name()
		if strings.HasSuffix(name, TempSuffix) {
			old = append(old, name)
			continue
		}
		digits, ok := strings.CutPrefix(name, j.prefix)
		digits, ok2 := strings.CutSuffix(digits, journalSuffix)
		n, err := strconv.ParseUint(digits, 10, 64)
		if !ok || !ok2 || err != nil || n == 0 || name != j.name(n) {
			continue
		}
		if j.number > 0 {
			old = append(old, j.name(min(n, j.number)))
		}
		j.number = max(n, j.number)
	}
	if j.number == 0 {
		j.number = 1
		j.log, err = CreateLog(j.fsys, j.path(1), j.opt)
	} else {
		// A log appears whole, and the names in the directory may be in memory only.
		if err := j.fsys.SyncDir(j.dir); err != nil {
			return err
		}
		j.log, err = OpenLog(j.fsys, j.path(j.number), j.opt, func(loc Location, meta []byte) error {
			if err := replay(loc, meta); err != nil {
				return fmt.Errorf("%s, octet %d: %w", j.name(j.number), loc.Offset, err)
			}
			return nil
		})
	}
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := j.fsys.Remove(filepath.Join(j.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Append appends records with one sync for all of them. They are durable when it returns nil.
func (j *Journal) Append(recs ...Record) ([]Location, error) {
	if j.failed != nil {
		return nil, j.failed
	}
	return j.log.Append(recs...)
}

// Size is that of the log, in octets.
func (j *Journal) Size() int64 { return j.log.Size() }

// Number is that of the log: it begins with 1, and grows by one with each Replace.
func (j *Journal) Number() uint64 { return j.number }

// Replace puts a log of these records in the place of the present one. After an error the present one is the journal's still; if the error
// matches [ErrFailed], it is not known which of them the next opening finds, and Append fails from then on.
func (j *Journal) Replace(recs []Record) error {
	if j.failed != nil {
		return j.failed
	}
	next, err := CreateLog(j.fsys, j.path(j.number+1), j.opt, recs...)
	if err != nil {
		if errors.Is(err, ErrFailed) {
			j.failed = err
		}
		return err
	}
	old := j.log
	j.log, j.number = next, j.number+1
	return errors.Join(old.Close(), j.fsys.Remove(j.path(j.number-1)))
}

// Close closes the log and gives the directory back. A second Close does nothing.
func (j *Journal) Close() error {
	if j.lock == nil {
		return nil
	}
	err := errors.Join(j.log.Close(), j.lock.Close())
	j.lock = nil
	if j.failed == nil {
		j.failed = fs.ErrClosed
	}
	return err
}
