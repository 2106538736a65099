package main

import (
	"strings"
	"testing"
)

// What comes twice counts twice, and is told apart by its Message-ID; nothing counts without -count.
func TestTally(t *testing.T) {
	ta := &tally{enough: 3, done: make(chan struct{})}
	s := session{ta}
	ta.connected()
	for _, id := range []string{"<a@b>", "<c@d>", "<a@b>"} {
		select {
		case <-ta.done:
			t.Fatal("enough too soon")
		default:
		}
		if err := s.Data(strings.NewReader("Subject: x\r\nMessage-ID: " + id + "\r\n\r\n" + strings.Repeat("x", 10_000))); err != nil {
			t.Fatal(err)
		}
	}
	<-ta.done
	if r := ta.report(); r.Connections != 1 || r.Messages != 3 || r.Distinct != 2 || r.Rate <= 0 {
		t.Errorf("%+v", r)
	}
	none := &tally{}
	if err := (session{none}).Data(strings.NewReader("no header at all")); err != nil || none.messages != 0 {
		t.Errorf("%v, %d", err, none.messages)
	}
}
