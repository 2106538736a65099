package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue/control"
	"github.com/mailspine/mailspine/queue/filequeue"
)

func doctorFlags(t *queueTool, fs *flag.FlagSet) {
	fs.BoolVar(&t.repair, "repair", false, "make a spool that can be used of one that is damaged; what is damaged is kept")
}

func doctorCheck(t *queueTool) error {
	if t.spool == "" || t.control != "" {
		return errors.New("a spool is examined whose queue is not running: -spool, and not -control")
	}
	return nil
}

// A shownFinding is a finding in JSON.
type shownFinding struct {
	Severity   string              `json:"severity"`
	Kind       string              `json:"kind"`
	File       string              `json:"file"`
	Offset     int64               `json:"offset"`
	Length     int64               `json:"length"`
	Text       string              `json:"text"`
	Action     string              `json:"action,omitempty"`
	Message    mailspine.MsgID     `json:"message,omitempty"`
	Sender     *mailspine.Address  `json:"sender,omitempty"`
	Recipients []mailspine.Address `json:"recipients,omitempty"`
	Guess      bool                `json:"guess,omitempty"`
}

// examine verifies a spool, and repairs it if it is told to.
func examine(ctx context.Context, t *queueTool) int {
	if err := checkSpool(t.spool); err != nil {
		return t.failed(fmt.Errorf("-spool: %w", err))
	}
	if err := checkOwner(t.spool); err != nil {
		return t.failed(fmt.Errorf("-spool: %w", err))
	}
	socket := filepath.Join(t.spool, "control")
	if _, err := os.Lstat(socket); err == nil {
		if i, err := (&control.Client{Path: socket}).Info(ctx); err == nil {
			return t.failed(fmt.Errorf("the queue is running, as process %d: stop it first", i.PID))
		}
	}
	w := bufio.NewWriter(t.stdout)
	var werr error
	rep, err := filequeue.Doctor(ctx, t.spool, filequeue.DoctorOptions{Repair: t.repair, MaxFindings: 1, Found: func(f filequeue.Finding) {
		if !t.json {
			fmt.Fprintln(w, printable(f.String()))
			werr = errors.Join(werr, w.Flush()) // as it goes on: it may take long
			return
		}
		s := shownFinding{
			Severity: string(f.Severity), Kind: string(f.Kind), File: f.File, Offset: f.Offset, Length: f.Length, Text: f.Text, Action: f.Action,
			Message: f.Message, Guess: f.Guess,
		}
		if f.Envelope != nil {
			s.Sender = &f.Envelope.From
			for _, r := range f.Envelope.Recipients {
				s.Recipients = append(s.Recipients, r.Address)
			}
		}
		werr = errors.Join(werr, writeJSON(w, s), w.Flush())
	}})
	if rep != nil {
		werr = errors.Join(werr, t.diagnosis(w, rep, err), w.Flush())
	}
	switch err := errors.Join(err, werr); {
	case err != nil:
		return t.failed(err)
	case !rep.OK():
		return exitProblem // also when it was repaired: what was lost is lost
	}
	return exitOK
}

// diagnosis sums up.
func (t *queueTool) diagnosis(w *bufio.Writer, r *filequeue.Report, failed error) error {
	if t.json {
		return writeJSON(w, struct {
			Segments int    `json:"segments"`
			Records  int64  `json:"records"`
			Messages int64  `json:"messages"`
			Items    int64  `json:"items"`
			Octets   int64  `json:"octets"`
			Notes    int    `json:"notes"`
			Damages  int    `json:"damages"`
			Lost     int    `json:"lost"`
			OK       bool   `json:"ok"`
			Repaired bool   `json:"repaired"`
			Saved    string `json:"saved,omitempty"`
		}{r.Segments, r.Records, r.Messages, r.Items, r.Bytes, r.Notes, r.Damages, r.Lost, r.OK() && failed == nil, r.Repaired, r.Saved})
	}
	fmt.Fprintf(w, "%s with %s and %s of content are whole, in %s and %s.\n", count(r.Messages, "message"), count(r.Items, "item"),
		count(r.Bytes, "octet"), count(int64(r.Segments), "segment"), count(r.Records, "record"))
	switch {
	case failed != nil:
	case r.OK() && r.Notes == 0:
		fmt.Fprintln(w, "Nothing is damaged.")
	case r.OK():
		fmt.Fprintf(w, "%s, nothing is damaged.\n", count(int64(r.Notes), "note"))
	default:
		fmt.Fprintf(w, "%s, %s, %s.\n", count(int64(r.Notes), "note"), count(int64(r.Damages), "damage"), fmt.Sprintf("%d lost", r.Lost))
		if r.Repaired {
			fmt.Fprintln(w, "The spool was repaired, and can be used.")
		} else {
			fmt.Fprintln(w, "Nothing was changed; -repair makes a spool of it that can be used.")
		}
	}
	if r.Saved != "" {
		fmt.Fprintf(w, "What was damaged is in %s.\n", printable(r.Saved))
	}
	return nil
}
