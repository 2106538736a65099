package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// show prints the story: steps, their hops with times, and a summary. It is
// safe for concurrent use, since hops are told by servers as they happen.
type show struct {
	w     io.Writer
	color bool // colours; only on a terminal
	live  bool // progress that overwrites itself; only on a terminal
	tab   bool // hops as "where TAB text", for another process to tell

	mu    sync.Mutex
	steps []*step
	bar   bool // a progress bar is on the current line
}

func newShow(f *os.File) *show {
	s := &show{w: f}
	if fi, err := f.Stat(); err == nil && fi.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb" {
		s.live = true
		s.color = os.Getenv("NO_COLOR") == ""
	}
	return s
}

// A step is one thing that the demo proves.
type step struct {
	s     *show
	title string
	start time.Time
	took  time.Duration
	note  string
	err   error
	done  bool
	quiet bool // too many hops to tell
}

const (
	green = "32"
	red   = "31"
	dim   = "2"
	bold  = "1"
	cyan  = "36"
)

func (s *show) paint(code, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s *show) printf(format string, args ...any) {
	if s.bar {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.bar = false
	}
	fmt.Fprintf(s.w, format, args...)
}

// step begins a step.
func (s *show) step(title string) *step {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &step{s: s, title: title, start: time.Now()}
	s.steps = append(s.steps, st)
	if !s.tab {
		s.printf("\n%s\n", s.paint(bold, fmt.Sprintf("%d. %s", len(s.steps), title)))
	}
	return st
}

// current is the step that runs; nil: none.
func (s *show) current() *step {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.steps); n > 0 && !s.steps[n-1].done {
		return s.steps[n-1]
	}
	return nil
}

// hop tells what happened where, in the step that runs.
func (s *show) hop(where, format string, args ...any) {
	st := s.current()
	s.mu.Lock()
	defer s.mu.Unlock()
	if st == nil || st.quiet {
		return
	}
	if s.tab {
		fmt.Fprintf(s.w, "%s\t%s\n", where, clean(fmt.Sprintf(format, args...)))
		return
	}
	ms := fmt.Sprintf("%7.1f ms", float64(time.Since(st.start).Microseconds())/1000)
	s.printf("  %s  %s %s\n", s.paint(dim, ms), s.paint(cyan, fmt.Sprintf("%-14s", where)), clean(fmt.Sprintf(format, args...)))
}

// quiet keeps back the hops of the step that runs, or lets them be told again.
func (s *show) quiet(on bool) {
	if st := s.current(); st != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		st.quiet = on
	}
}

// wire prints one line of a dialogue, for -v: < came in, > was sent.
func (s *show) wire(where string, in bool, line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	arrow := ">"
	if in {
		arrow = "<"
	}
	s.printf("  %s\n", s.paint(dim, fmt.Sprintf("%10s  %-14s %s %s", "", where, arrow, clean(line))))
}

// clean keeps a peer's control characters off the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.TrimRight(s, "\r\n"))
}

// progress shows how far a long step is.
func (s *show) progress(done, total int, since time.Time) {
	if !s.live || total == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	const width = 32
	n := done * width / total
	rate := float64(done) / max(time.Since(since).Seconds(), 0.001)
	fmt.Fprintf(s.w, "\r\x1b[K  %s%s %d/%d  %.0f/s", s.paint(green, strings.Repeat("#", n)), strings.Repeat(".", width-n), done, total, rate)
	s.bar = true
}

// end closes the step with a result.
func (st *step) end(err error, note string) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	st.done, st.err, st.note, st.took = true, err, note, time.Since(st.start)
	if err != nil {
		s.printf("  %s %s\n", s.paint(red, "FAILED"), clean(err.Error()))
		return
	}
	s.printf("  %s %s\n", s.paint(green, "ok"), note)
}

// summary prints the table of steps, and reports whether all went well.
func (s *show) summary(total time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	good := len(s.steps) > 0
	s.printf("\n%s\n", s.paint(bold, "Summary"))
	for i, st := range s.steps {
		res, note := s.paint(green, "ok    "), st.note
		if st.err != nil || !st.done {
			good = false
			res = s.paint(red, "FAILED")
			if st.err != nil {
				note = clean(st.err.Error())
			}
		}
		s.printf("  %d. %-44s %s %6.0f ms  %s\n", i+1, st.title, res, float64(st.took.Milliseconds()), note)
	}
	verdict := s.paint(green, "all as it should be")
	if !good {
		verdict = s.paint(red, "something differs")
	}
	s.printf("  %s, in %.1f s\n", verdict, total.Seconds())
	return good
}
