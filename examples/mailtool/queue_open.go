package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/control"
	"github.com/mailspine/mailspine/queue/filequeue"
)

// A view is a queue that is looked into: one that is running, through its control socket, or the spool of one that
// is not.
type view struct {
	control.Queue
	open   func(ctx context.Context, id mailspine.MsgID) (io.ReadCloser, error)
	health func(ctx context.Context) error
	live   *control.Client // nil: the queue is not running
	info   control.Info    // of live
	close  func() error
}

// look opens the queue that the flags name. When it returns an error, nothing has been made or changed.
func (t *queueTool) look(ctx context.Context) (*view, error) {
	path := t.control
	if path == "" {
		path = filepath.Join(t.spool, "control")
		if err := checkSpool(t.spool); err != nil {
			return nil, fmt.Errorf("-spool: %w", err)
		}
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return t.lookStopped("there is no " + path)
		}
	}
	c := &control.Client{Path: path}
	info, err := c.Info(ctx)
	switch {
	case err == nil:
		return &view{Queue: c, open: c.Open, health: c.Health, live: c, info: info, close: func() error { return nil }}, nil
	case errors.Is(err, control.ErrNoServer) && t.spool != "":
		return t.lookStopped("nobody answers at " + path)
	}
	return nil, err
}

// lookStopped opens the spool of a queue that is not running. Meanwhile it cannot be started.
func (t *queueTool) lookStopped(why string) (*view, error) {
	if err := checkSpool(t.spool); err != nil {
		return nil, fmt.Errorf("-spool: %w", err)
	}
	if err := checkOwner(t.spool); err != nil {
		return nil, fmt.Errorf("-spool: %w", err)
	}
	log := slog.New(slog.NewTextHandler(t.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	store, err := filequeue.Open(t.spool, &filequeue.Options{Logger: log})
	if err != nil {
		return nil, fmt.Errorf("%s, and the spool cannot be opened: %w", why, err)
	}
	q := &queue.Queue{Store: store, Hostname: t.hostname, Logger: log}
	// Of a queue that is not running only the health of its store says anything.
	return &view{Queue: q, open: store.Open, health: store.Health, close: store.Close}, nil
}

// checkSpool makes sure that a directory is a spool, since opening another one would make it one.
func checkSpool(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is no directory", dir)
	}
	if !hasSpool(dir) {
		return fmt.Errorf("%s is not the spool of a queue", dir)
	}
	return nil
}

// checkOwner makes sure that what is written there will belong to whom it has to.
func checkOwner(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if uid, ok := owner(fi); ok && uid != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: run this as that user, or the queue could not use its own files any more", dir, uid)
	}
	return nil
}

// hasSpool reports whether a directory has the lock of a spool, or a segment of its journal.
func hasSpool(dir string) bool {
	if _, err := os.Lstat(filepath.Join(dir, "lock")); err == nil {
		return true
	}
	entries, err := os.ReadDir(dir) // a spool has few
	return err == nil && slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return strings.HasPrefix(e.Name(), "journal-") && strings.HasSuffix(e.Name(), ".log")
	})
}
