package queuetest_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/filequeue"
	"github.com/mailspine/mailspine/queue/memqueue"
	"github.com/mailspine/mailspine/queue/queuetest"
)

// A driver's test file is one call.
func ExampleRun() {
	_ = func(t *testing.T) { // TestStore
		queuetest.Run(t, queuetest.Harness{
			Open:     func(t *testing.T) queue.Store { return memqueue.New(nil) },
			Synctest: true,
		})
	}
}

func ExampleRules() {
	for _, r := range queuetest.Rules() {
		if r.Name == "SettleTwice" || r.Name == "LeaseMax" || r.Name == "ControlFlush" {
			fmt.Printf("%s: %s\n", r.Name, r.Sentence)
		}
	}
	// Output:
	// LeaseMax: Lease returns up to Max items; 0 is 1.
	// SettleTwice: A settlement ends its lease: a second one is ErrLeaseLost.
	// ControlFlush: OpFlush makes an item that is waiting due now. What is held stays so.
}

// A store on real files, killed 20 times. Points inside of it are there if the store
// calls the hook; this one is killed at moments between its calls and at random ones.
func ExampleRunCrash() {
	_ = func(t *testing.T) { // TestCrash
		queuetest.RunCrash(t, queuetest.Crash{
			Open: func(dir string, hook func(point string)) (queue.Store, error) {
				return filequeue.Open(dir, nil)
			},
		})
	}
}

// disk is a driver's simulated disk. Its file system, which is not shown, counts operations,
// keeps what was not synced apart, and asks fault before each call.
type disk struct {
	fault func(call string) error
}

func (d *disk) CutAt(n int)             {}
func (d *disk) WasCut() bool            { return false }
func (d *disk) Crash(seed uint64) *disk { return &disk{} }

var errSync = errors.New("a sync failed")

func openOn(d *disk) (queue.Store, error) { return memqueue.New(nil), nil }

func ExampleRunPowerCut() {
	_ = func(t *testing.T) { // TestPowerCut
		queuetest.RunPowerCut(t, queuetest.PowerCut[*disk]{
			New:  func() *disk { return &disk{} },
			Open: openOn,
		})
	}
}

func ExampleRunFaults() {
	_ = func(t *testing.T) { // TestFaults
		queuetest.RunFaults(t, queuetest.Faults[*disk]{
			New: func() *disk { return &disk{} },
			Open: func(d *disk, fault func(call string) error) (queue.Store, error) {
				d.fault = fault
				return openOn(d)
			},
			Unknown: func(err error) bool { return errors.Is(err, errSync) },
		})
	}
}
