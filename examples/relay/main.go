package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/mailspine/mailspine"
)

// The exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	tune()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// tune is for a process that does little but wait for clients and the disk, see the page of this program.
func tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(512 << 20)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 2)
	}
}

// run is the whole life of the relay. Only the address goes to stdout.
func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "relay:", err)
		return exitUsage
	}
	log := slog.New(slog.NewTextHandler(stderr, logging(o)))

	// From here on a signal ends the relay in order, even while it starts.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := newRelay(o, log)
	if err != nil {
		fmt.Fprintln(stderr, "relay:", err)
		return exitFailure
	}
	r.start()
	fmt.Fprintln(stdout, r.listener.Addr())

	var failure error
	select {
	case <-ctx.Done():
	case failure = <-r.failed:
		log.Error("a part has failed", "err", failure)
	}
	stop() // the next signal is the system's to handle, and kills
	log.Info("stopping; a second signal ends it at once")
	if err := r.stop(); err != nil || failure != nil {
		log.Error("stopped", "err", errors.Join(failure, err))
		return exitFailure
	}
	log.Info("stopped")
	return exitOK
}

func logging(o *options) *slog.HandlerOptions {
	h := &slog.HandlerOptions{Level: slog.LevelWarn}
	if o.verbose {
		h.Level = slog.LevelInfo
	}
	if o.redact {
		h.ReplaceAttr = mailspine.RedactAddresses
	}
	return h
}
