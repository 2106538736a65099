package durable_test

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

// slowDir is a file system where a sync of a directory takes a second, and says when it began.
type slowDir struct {
	durable.FS
	syncs atomic.Int64
	err   error
}

func (s *slowDir) SyncDir(name string) error {
	s.syncs.Add(1)
	err := s.FS.SyncDir(name)
	time.Sleep(time.Second)
	return errors.Join(err, s.err)
}

// Those who wait share a sync that began after they came.
func TestDirSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := new(durabletest.Disk)
		slow := &slowDir{FS: d}
		s := durable.NewDirSync(slow, ".")
		var wg sync.WaitGroup
		began := time.Now()
		const n = 50
		for i := range n {
			wg.Go(func() {
				if i > 0 {
					time.Sleep(500 * time.Millisecond) // while the first is being synced
				}
				name := fmt.Sprint("f", i)
				f, err := d.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
				if err != nil {
					t.Error(err)
					return
				}
				f.Close()
				if err := s.Sync(); err != nil {
					t.Error(err)
				}
				if _, err := d.Crash(0).Stat(name); err != nil {
					t.Errorf("%s is not on the disk: %v", name, err)
				}
			})
		}
		wg.Wait()
		if n := slow.syncs.Load(); n != 2 || time.Since(began) != 2*time.Second {
			t.Errorf("%d syncs in %v, want 2 in 2s", n, time.Since(began))
		}
		slow.err = errors.New("rotten")
		for range 3 {
			wg.Go(func() {
				if err := s.Sync(); !errors.Is(err, slow.err) {
					t.Errorf("a sync that failed: %v", err)
				}
			})
		}
		wg.Wait()
		slow.err = nil
		if err := s.Sync(); err != nil {
			t.Errorf("after it: %v", err)
		}
	})
}

func TestDirSyncRace(t *testing.T) {
	s := durable.NewDirSync(nil, t.TempDir())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if err := s.Sync(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
