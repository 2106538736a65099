package report_test

import (
	"bytes"
	"fmt"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/internal/report"
)

func ExampleMessage() {
	m := report.Message{
		From:      "Mail Delivery System <MAILER-DAEMON@mx.example.org>",
		To:        mailspine.Address{Local: "joe", Domain: "example.org"},
		Subject:   "Your message could not be delivered",
		Date:      time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
		MessageID: "1@mx.example.org",
		Text:      "Your message could not be delivered to ann@example.net.\n",
		Delivery: report.Delivery{
			ReportingMTA: report.Typed{Type: "dns", Value: "mx.example.org"},
			Recipients: []report.Recipient{{
				Final:      report.ForAddress(mailspine.Address{Local: "ann", Domain: "example.net"}),
				Action:     report.Failed,
				Status:     mailspine.EnhancedCode{5, 1, 1},
				Diagnostic: report.Typed{Type: "smtp", Value: "550 5.1.1 No such user"},
			}},
		},
	}
	b, _ := m.Bytes()
	r, err := report.Parse(bytes.NewReader(b))
	if err != nil {
		panic(err)
	}
	for _, x := range r.Delivery.Recipients {
		fmt.Println(x.Final.Value, x.Action, x.Status, x.Diagnostic.Value)
	}
	// Output:
	// ann@example.net failed 5.1.1 550 5.1.1 No such user
}
