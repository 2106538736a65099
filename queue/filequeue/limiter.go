package filequeue

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/internal/ledger"
)

// The files of a Limiter.
const (
	limiterMagic   = "MSlimits"
	limiterVersion = 1
	limiterPrefix  = "limits-"

	// minLimiterLog is the size under which a log is not replaced.
	minLimiterLog = 1 << 20
)

// LimiterOptions tune a Limiter. The zero value, and nil, mean the defaults.
type LimiterOptions struct {
	// MaxKeys is how many counts there are at the same time, about 250 octets of memory each; 0: a million. Those that say
	// nothing any more are forgotten: slots of which none is held, rates that have refilled, quotas whose
	// period is over for as long again. Beyond it a Take of a new key is queue.ErrLimiterFull.
	MaxKeys int
	// MaxPermits is how many permits are open at the same time, about 200 octets each; 0: a million. Beyond it a Take is
	// queue.ErrLimiterFull.
	MaxPermits int
	// Block is how much of a key is reserved with one write; of a rate one more. A crash costs the part of it that was not used. 1: each
	// Take is written. 0: a fiftieth of the limit, up to 1,000; of a rate what comes back in a second, if that is more.
	Block int64
	// Now is the clock; nil: time.Now. Its wall time tells the periods of quotas.
	Now func() time.Time
	// Logger gets what goes wrong behind the scenes; nil: slog.Default.
	Logger *slog.Logger

	fs      durable.FS // tests break it; nil: the operating system's
	compact int64      // tests make logs short; 0: minLimiterLog
	written func()     // tests kill the process there
}

// A Limiter is a queue.Limiter for one process and one directory. It is made by [OpenLimiter].
//
// Rates and quotas survive a crash and a power cut, and what was granted before is never granted again: of each key a block is
// reserved with a write that is synced, and only a Take that would go past it waits for the next. All who
// wait share one sync. After a crash the whole block counts as used (LimiterOptions.Block);
// Close saves exact counts. Slots and permits end with the process.
//
// When a write fails, what would need it is refused with an error, and nothing is granted that is not on the disk. After a failed sync the Limiter
// has to be opened again; a disk that was full is used again when it has room.
type Limiter struct {
	*ledger.Ledger
	log *limiterLog
}

var _ queue.Limiter = (*Limiter)(nil)

// LimiterStats counts what a Limiter remembers.
type LimiterStats struct {
	Keys    int
	Permits int // open ones
}

// OpenLimiter opens the limiter in a directory of its own, and makes what is missing of it. The directory is locked: if another
// process has it open, the error says which. A log that is damaged or that a newer program wrote is an error: nothing is granted
// then, rather than too much.
//
// The directory has one log of records, each about 60 octets and the key. It is replaced by a shorter one when it is larger than twice what is
// needed and a MiB.
func OpenLimiter(dir string, o *LimiterOptions) (*Limiter, error) {
	g := &limiterLog{dir: dir}
	if o != nil {
		g.opt = *o
	}
	if g.opt.Logger == nil {
		g.opt.Logger = slog.Default()
	}
	if g.opt.compact == 0 {
		g.opt.compact = minLimiterLog
	}
	// The last record of a key counts, so at most one for each is in memory.
	last := map[ledger.Record]ledger.Record{}
	var wall int64
	lo := durable.LogOptions{Magic: limiterMagic, Version: limiterVersion, Written: g.opt.written}
	var err error
	g.log, err = durable.OpenJournal(g.opt.fs, filepath.Clean(dir), limiterPrefix, lo, func(_ durable.Location, meta []byte) error {
		r, err := decodeLimit(meta)
		if err != nil {
			return err
		}
		wall = max(wall, r.Wall)
		if r.Kind != 0 {
			last[ledger.Record{Kind: r.Kind, Key: r.Key, Per: r.Per}] = r
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("filequeue: open limiter %s: %w", dir, err)
	}
	recs := []ledger.Record{{Wall: wall}}
	for _, r := range last {
		recs = append(recs, r)
	}
	return &Limiter{
		Ledger: ledger.New(ledger.Options{
			MaxKeys: g.opt.MaxKeys, MaxPermits: g.opt.MaxPermits, Block: g.opt.Block, Now: g.opt.Now, Journal: g, Records: recs,
		}),
		log: g,
	}, nil
}

// Stats returns how much is remembered.
func (l *Limiter) Stats() LimiterStats { return LimiterStats(l.Ledger.Stats()) }

// Close saves exact counts and closes the files. It waits for calls under way; later ones return queue.ErrClosed. A second Close does
// nothing.
func (l *Limiter) Close() error {
	err := l.Ledger.Close()
	if e := l.log.log.Close(); err == nil && e != nil {
		err = fmt.Errorf("filequeue: close limiter %s: %w", l.log.dir, e)
	}
	return err
}

// A limiterLog is the ledger.Journal of a directory.
type limiterLog struct {
	dir string
	opt LimiterOptions
	log *durable.Journal
	// retry is the size at which replacing the log is tried again after it failed.
	retry int64
}

// Save implements ledger.Journal.
func (g *limiterLog) Save(recs []ledger.Record) error {
	rows, err := limitRows(recs)
	if err == nil {
		_, err = g.log.Append(rows...)
	}
	return err
}

func limitRows(recs []ledger.Record) ([]durable.Record, error) {
	rows := make([]durable.Record, len(recs))
	for i, r := range recs {
		b, err := encodeLimit(r)
		if err != nil {
			return nil, err
		}
		rows[i].Meta = b
	}
	return rows, nil
}

// limitRecordSize is about how long a record is in the log, with a short key.
const limitRecordSize = 80

// Large implements ledger.Journal.
func (g *limiterLog) Large(n int) bool {
	return g.log.Size() > max(g.opt.compact+2*int64(n)*limitRecordSize, g.retry)
}

// Replace implements ledger.Journal.
func (g *limiterLog) Replace(recs []ledger.Record) {
	rows, err := limitRows(recs)
	if err == nil {
		err = g.log.Replace(rows)
	}
	// Keys may be long: what is needed may be more than Large expects.
	g.retry = 2 * g.log.Size()
	if err != nil {
		g.opt.Logger.Warn("filequeue: the limiter's log cannot be replaced by a shorter one", "dir", g.dir, "err", err)
	}
}
