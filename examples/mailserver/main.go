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
	"syscall"

	"github.com/mailspine/mailspine"
)

// The exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is the whole life of the server. Only the addresses go to stdout.
func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "mailserver:", err)
		return exitUsage
	}
	log := slog.New(slog.NewTextHandler(stderr, logging(o)))
	for _, w := range o.warnings {
		log.Warn(w)
	}

	// From here on a signal ends the server in order, even while it starts.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := newServer(o, log)
	if err != nil {
		fmt.Fprintln(stderr, "mailserver:", err)
		return exitFailure
	}
	s.start()
	for _, d := range s.doors {
		fmt.Fprintln(stdout, d.name, d.listener.Addr())
	}
	log.Info("ready", "domain", o.domain, "hostname", o.hostname, "dir", o.dir, "users", len(o.users))

	var failure error
	select {
	case <-ctx.Done():
	case failure = <-s.failed:
		log.Error("a part has failed", "err", failure)
	}
	stop() // the next signal is the system's to handle, and kills: nothing that was accepted is lost by that
	log.Info("stopping; a second signal ends it at once")
	if err := s.stop(); err != nil || failure != nil {
		log.Error("stopped", "err", errors.Join(failure, err))
		return exitFailure
	}
	log.Info("stopped")
	return exitOK
}

func logging(o *options) *slog.HandlerOptions {
	h := &slog.HandlerOptions{}
	if o.verbose {
		h.Level = slog.LevelDebug
	}
	if o.redact {
		h.ReplaceAttr = mailspine.RedactAddresses
	}
	return h
}
