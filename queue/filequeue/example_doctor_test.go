package filequeue_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
	"github.com/mailspine/mailspine/queue/filequeue"
)

// After a disk has failed, look first, and repair when what is lost is known.
func ExampleDoctor() {
	dir, err := os.MkdirTemp("", "spool")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := filequeue.Open(dir, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, id := range []mailspine.MsgID{"small", "large"} {
		body := "Subject: " + string(id) + "\r\n\r\n"
		if id == "large" {
			body += strings.Repeat("All work and no play\r\n", 10_000)
		}
		m := queue.Message{
			Envelope: &mailspine.Envelope{
				ID:         id,
				From:       mailspine.Address{Local: "jack", Domain: "example.org"},
				Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "wendy", Domain: "example.net"}}},
			},
			Items: []queue.NewItem{{Route: "example.net", Recipients: []int{0}}},
		}
		if err := store.Put(context.Background(), m, mailspine.StringContent(body)); err != nil {
			log.Fatal(err)
		}
	}
	store.Close()

	bodies, _ := filepath.Glob(filepath.Join(dir, "bodies", "*"))
	os.Truncate(bodies[0], 1000)

	report, err := filequeue.Doctor(context.Background(), dir, filequeue.DoctorOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range report.Findings {
		fmt.Println(f.Severity, f.Kind, f.Message, "-", f.Text)
	}
	report, err = filequeue.Doctor(context.Background(), dir, filequeue.DoctorOptions{Repair: true})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("repaired:", report.Repaired, "- messages left:", report.Messages, "- kept in:", report.Saved)
	// Output:
	// damage file large - the body of a message has 1000 octets, not 220018
	// lost message large - a message is lost: its content is damaged or missing
	// repaired: true - messages left: 1 - kept in: damaged/1
}
