package convert_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda"
	"github.com/mailspine/mailspine/mda/convert"
	"github.com/mailspine/mailspine/mda/mailbox"
	"github.com/mailspine/mailspine/mda/mailbox/memory"
)

// show prints a message with bare line ends.
func show(c mailspine.Content) {
	b, err := mailspine.ReadContent(context.Background(), c, 1<<20)
	if err != nil {
		panic(err)
	}
	fmt.Print(strings.ReplaceAll(string(b), "\r\n", "\n"))
}

// HTML as text: where a link leads stands behind it, and nothing is loaded or run.
func ExampleOptions_Convert() {
	msg := mailspine.StringContent(strings.ReplaceAll(`From: joe@example.com
Subject: =?iso-8859-1?q?Ihr_Konto_l=E4uft_ab?=
MIME-Version: 1.0
Content-Type: text/html; charset=iso-8859-1

<h1>Dear client</h1><p style="display:none">ignore this</p>
<p>Please <a href="https://bank.example@evil.example/login">log in at <b>bank.example</b></a>:
<ol><li>today<li>or <a href="javascript:steal()">now</a></ol>
<img src="https://evil.example/pixel.gif"><script>track()</script>
`, "\n", "\r\n"))

	o := &convert.Options{UTF8: true, Text: true}
	derived, err := o.Convert(context.Background(), msg)
	if err != nil {
		panic(err)
	}
	defer derived.Close()
	show(derived.Content)
	// Output:
	// From: joe@example.com
	// Subject: =?utf-8?q?Ihr_Konto_l=C3=A4uft_ab?=
	// MIME-Version: 1.0
	// Content-Type: text/plain; charset=utf-8
	// Content-Transfer-Encoding: quoted-printable
	// X-Mailspine-Converted: utf-8, text
	//
	// # Dear client
	//
	// Please log in at bank.example <https://evil.example/login>:
	//
	//  1. today
	//  2. or now [javascript: link left out]
}

// Seven bits, for a reader that has no more.
func ExampleOptions_Write() {
	msg := mailspine.StringContent("From: Jürgen <jü@bücher.example>\r\nSubject: Grüße\r\n" +
		"Content-Type: text/plain; charset=utf-8\r\nMIME-Version: 1.0\r\n\r\nSchöne Grüße aus der Stadt am Fluss!\r\n")
	var out strings.Builder
	res, err := (&convert.Options{SevenBit: true}).Write(context.Background(), &out, msg)
	if err != nil {
		panic(err)
	}
	fmt.Print(strings.ReplaceAll(out.String(), "\r\n", "\n"))
	for _, n := range res.Notes {
		fmt.Println(n)
	}
	// Output:
	// From: =?utf-8?b?SsO8cmdlbiBqw7xAeG4tLWJjaGVyLWt2YS5leGFtcGxl?=: ;
	// Subject: =?utf-8?b?R3LDvMOfZQ==?=
	// Content-Type: text/plain; charset=utf-8
	// MIME-Version: 1.0
	// Content-Transfer-Encoding: quoted-printable
	// X-Mailspine-Converted: 7bit
	//
	// Sch=C3=B6ne Gr=C3=BC=C3=9Fe aus der Stadt am Fluss!
	// field "From": an address has no form in seven bits, and became the name of an empty group
}

// Text for Ann's inbox, and the messages as they came in a mailbox beside it.
func ExampleByMailbox() {
	ctx := context.Background()
	store := memory.New(nil)
	defer store.Close()
	users, err := mda.Users("ann@example.org")
	if err != nil {
		panic(err)
	}
	agent := &mda.Agent{
		Mailboxes: store,
		Directory: users,
		Formats: convert.ByMailbox{
			{Account: "ann@example.org", Name: mailbox.Inbox}: {
				Options:   convert.Options{UTF8: true, Text: true},
				Originals: "As it came",
			},
		},
	}
	env := &mailspine.Envelope{
		ID:         mailspine.NewMsgID(),
		From:       mailspine.Address{Local: "joe", Domain: "example.com"},
		Recipients: []mailspine.Recipient{{Address: mailspine.Address{Local: "ann", Domain: "example.org"}}},
	}
	html := mailspine.StringContent("MIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n<p>Hello, <i>Ann</i>.\r\n")
	if err := agent.Deliver(ctx, env, html); err != nil {
		panic(err)
	}

	acct, _ := store.Account(ctx, "ann@example.org")
	boxes, _ := acct.Mailboxes(ctx)
	for _, b := range boxes {
		m, _ := acct.Open(ctx, b.Name)
		snap, _ := m.Snapshot(ctx)
		for _, info := range snap.Messages {
			body, _ := m.Body(ctx, info.UID)
			text := make([]byte, body.Size())
			body.ReadAt(text, 0)
			body.Close()
			_, last, _ := strings.Cut(string(text), "\r\n\r\n")
			fmt.Printf("%s: %s\n", b.Name, strings.TrimSpace(last))
		}
	}
	// Output:
	// INBOX: Hello, Ann.
	// As it came: <p>Hello, <i>Ann</i>.
}
