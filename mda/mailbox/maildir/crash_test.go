package maildir

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

// crashDir in the environment makes this test binary the child that is killed.
const crashDir = "MAILSPINE_TEST_MAILDIR"

var bg = context.Background()

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		crashChild(dir)
		os.Exit(3) // it ends only by being killed
	}
	os.Exit(m.Run())
}

// crashChild delivers, flags and moves as fast as it can, and tells what is done.
func crashChild(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(4)
		}
	}
	store, err := Open(dir, &Options{Logger: quiet()})
	fail(err)
	acct, err := store.Account(bg, "ann")
	fail(err)
	var mu sync.Mutex
	tell := func(what, id string) {
		mu.Lock()
		fmt.Println(what, id)
		mu.Unlock()
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 100_000 {
				id := fmt.Sprintf("%s-%d-%d", os.Getenv("MAILSPINE_TEST_ROUND"), w, i)
				tell("trying", id)
				d, err := acct.Deliver(bg, mailspine.StringContent(id), mailbox.DeliverOptions{ID: id})
				fail(err)
				tell("delivered", id)
				inbox, err := acct.Open(bg, "INBOX")
				fail(err)
				switch i % 4 {
				case 1:
					_, err = inbox.MoveTo(bg, []mailbox.UID{d.Copies[0].UID}, "Done")
					fail(err)
					tell("moved", id)
				case 2:
					_, err = inbox.SetFlags(bg, []mailbox.UID{d.Copies[0].UID}, mailbox.FlagChange{Flags: []mailbox.Flag{mailbox.Seen, "tag"}})
					fail(err)
					tell("flagged", id)
				case 3:
					_, err = inbox.Expunge(bg, []mailbox.UID{d.Copies[0].UID}, mailbox.ExpungeOptions{Any: true})
					fail(err)
					tell("expunged", id)
				}
			}
		})
	}
	wg.Wait()
}

// The process is killed while it delivers. Whatever was answered for is there, once; what was not
// can be done again, and is there once too.
func TestKill(t *testing.T) {
	rounds := 3
	switch {
	case os.Getenv("MAILSPINE_SOAK") != "":
		rounds = 200
	case os.Getenv("MAILSPINE_CI") != "":
		rounds = 20
	}
	dir := t.TempDir()
	store, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	acct, err := store.Account(t.Context(), "ann")
	if err != nil {
		t.Fatal(err)
	}
	if err := acct.Create(t.Context(), "Done", mailbox.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	store.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]string{} // the last that was told of each ID
	for round := range rounds {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), crashDir+"="+dir, fmt.Sprint("MAILSPINE_TEST_ROUND=", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		stop := 40 + 37*(round%11)
		for n := 0; lines.Scan(); n++ { // also what was told before it died
			what, id, _ := strings.Cut(lines.Text(), " ")
			if what == "failed" {
				t.Error(lines.Text())
			}
			told[id] = what
			if n == stop {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		checkKilled(t, dir, told)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	t.Logf("%d rounds, %d deliveries", rounds, len(told))
}

func checkKilled(t *testing.T, dir string, told map[string]string) {
	t.Helper()
	store, err := Open(dir, &Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	acct, err := store.Account(t.Context(), "ann")
	if err != nil {
		t.Fatal(err)
	}
	// The queue repeats what it has no answer for.
	for id, what := range told {
		if what == "trying" {
			if _, err := acct.Deliver(t.Context(), mailspine.StringContent(id), mailbox.DeliverOptions{ID: id}); err != nil {
				t.Fatal(err)
			}
			told[id] = "delivered"
		}
	}
	where := map[string]string{}
	flags := map[string]string{}
	for _, name := range []string{"INBOX", "Done"} {
		m, err := acct.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := m.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range s.Messages {
			b, err := m.Body(t.Context(), x.UID)
			if err != nil {
				t.Fatal(err)
			}
			raw := make([]byte, b.Size())
			b.ReadAt(raw, 0)
			b.Close()
			id := string(raw)
			if where[id] != "" {
				t.Errorf("%s is in %s and in %s", id, where[id], name)
			}
			where[id], flags[id] = name, fmt.Sprint(x.Flags)
			if told[id] == "" {
				t.Errorf("%s was never sent", id)
			}
		}
	}
	for id, what := range told {
		var i int
		fmt.Sscanf(id[strings.LastIndexByte(id, '-')+1:], "%d", &i)
		box := where[id]
		ok := true
		switch what {
		case "delivered": // and what comes next may have happened
			ok = box == "INBOX" || i%4 == 1 && box == "Done" || i%4 == 3 && box == ""
		case "moved":
			ok = box == "Done"
		case "flagged":
			ok = box == "INBOX" && flags[id] == `[\Seen tag]`
		case "expunged":
			ok = box == ""
		}
		if !ok {
			t.Errorf("%s was %s, and is in %q with %s", id, what, box, flags[id])
		}
	}
}
