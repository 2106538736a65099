package fbl

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/durable"
)

// The dictionary is one log of rows in JSON. It only grows, and by a row for each
// scope; there is nothing to compact.
const (
	scopesMagic   = "MSscopes"
	scopesVersion = 1
	scopesName    = "scopes.log"
	maxScopeRow   = 8 << 10
)

// ScopesOptions tune a FileScopes. The zero value, and nil, mean the defaults.
type ScopesOptions struct {
	// Max bounds the scopes; 0: DefaultMaxScopes.
	Max int

	fs durable.FS // tests break it; nil: the operating system's
}

// FileScopes is a Scopes in a directory. It is made by [OpenScopes]. What was remembered survives a crash
// and a loss of power. All scopes are in memory too.
type FileScopes struct {
	dir  string
	lock io.Closer
	log  *durable.Log
	mem  MemoryScopes

	mu     sync.Mutex // held while a scope is written
	closed bool
}

var _ Scopes = (*FileScopes)(nil)

type scopeRow struct {
	ID     string `json:"id"`
	Tenant string `json:"tenant,omitempty"`
	Stream string `json:"stream,omitempty"`
	Local  string `json:"local,omitempty"`
	Domain string `json:"domain,omitempty"`
}

// OpenScopes opens the dictionary in a directory, and makes what is missing of it. The directory is locked. A
// damaged file is an error, and so is one that a newer program wrote.
func OpenScopes(dir string, o *ScopesOptions) (*FileScopes, error) {
	if o == nil {
		o = &ScopesOptions{}
	}
	f := &FileScopes{dir: dir, mem: MemoryScopes{Max: o.Max}}
	if err := f.open(durable.Or(o.fs)); err != nil {
		if f.log != nil {
			f.log.Close()
		}
		if f.lock != nil {
			f.lock.Close()
		}
		return nil, fmt.Errorf("fbl: open %s: %w", dir, err)
	}
	return f, nil
}

func (f *FileScopes) open(fsys durable.FS) (err error) {
	if err := durable.MkdirAll(fsys, f.dir, 0o700); err != nil {
		return err
	}
	// An earlier process may have been killed between making a name and its sync.
	if err := fsys.SyncDir(filepath.Dir(f.dir)); err != nil {
		return err
	}
	if f.lock, err = fsys.Lock(filepath.Join(f.dir, "lock")); err != nil {
		return err
	}
	if err := fsys.SyncDir(f.dir); err != nil {
		return err
	}
	name := filepath.Join(f.dir, scopesName)
	opt := durable.LogOptions{Magic: scopesMagic, Version: scopesVersion}
	if err := fsys.Remove(name + durable.TempSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f.log, err = durable.OpenLog(fsys, name, opt, func(loc durable.Location, meta []byte) error {
		var r scopeRow
		if len(meta) > maxScopeRow {
			return fmt.Errorf("octet %d: a row of %d octets", loc.Offset, len(meta))
		}
		if err := json.Unmarshal(meta, &r); err != nil {
			return fmt.Errorf("octet %d: %w", loc.Offset, err)
		}
		id, err := hex.DecodeString(r.ID)
		if err != nil || len(id) != len(ScopeID{}) {
			return fmt.Errorf("octet %d: the ID %.20q", loc.Offset, r.ID)
		}
		f.mem.set(ScopeID(id), Scope{r.Tenant, r.Stream, mailspine.Address{Local: r.Local, Domain: r.Domain}})
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		f.log, err = durable.CreateLog(fsys, name, opt)
	}
	return err
}

// Remember notes what an ID stands for. A new one is on the disk when it returns nil.
func (f *FileScopes) Remember(_ context.Context, id ScopeID, s Scope) error {
	if ok, err := f.mem.known(id, s); ok || err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	if ok, err := f.mem.known(id, s); ok || err != nil { // somebody else was faster
		return err
	}
	b, err := json.Marshal(scopeRow{hex.EncodeToString(id[:]), s.Tenant, s.Stream, s.Sender.Local, s.Sender.Domain})
	if err != nil {
		return err
	}
	if len(b) > maxScopeRow {
		return fmt.Errorf("fbl: a scope of %d octets", len(b))
	}
	if _, err := f.log.Append(durable.Record{Meta: b}); err != nil {
		return fmt.Errorf("fbl: %s: %w", f.dir, err)
	}
	f.mem.set(id, s)
	return nil
}

// Find returns what an ID stands for.
func (f *FileScopes) Find(ctx context.Context, id ScopeID) (Scope, error) { return f.mem.Find(ctx, id) }

// Close closes the file. Later a new scope is an error. A second Close does nothing.
func (f *FileScopes) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	return errors.Join(f.log.Close(), f.lock.Close())
}
