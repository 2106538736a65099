package imap

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2/imapserver"
	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mda/mailbox"
)

const letter = "From: Joe <joe@example.com>\r\nTo: ann@example.org\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nDate: Sun, 01 Mar 2026 10:00:00 +0100\r\nMessage-ID: <1@example.com>\r\nX-Long: a\r\n b\r\n\r\nHello Ann,\r\nhow are you?\r\n"

func TestDialogue(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial()
	greeting := c.want("* OK")
	if !strings.Contains(greeting, "STARTTLS") || !strings.Contains(greeting, "LOGINDISABLED") || strings.Contains(greeting, "AUTH=") {
		t.Error(greeting)
	}
	c.no(`LOGIN `+user+` "`+password+`"`, "NO [PRIVACYREQUIRED]")
	c.no("AUTHENTICATE PLAIN", "NO [PRIVACYREQUIRED]")
	c.no("SELECT INBOX", "BAD")
	c.ok("STARTTLS")
	tc := tls.Client(c.nc, b.clientTLS())
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	c = newClient(t, tc)
	if caps := c.ok("CAPABILITY"); !strings.Contains(caps, "AUTH=PLAIN") || strings.Contains(caps, "STARTTLS") || strings.Contains(caps, "LOGINDISABLED") {
		t.Error(caps)
	}
	c.no("LOGIN "+user+" wrong", "NO [AUTHENTICATIONFAILED]")
	_, tagged := c.do(`LOGIN ` + user + ` "` + password + `"`)
	for _, want := range []string{"IMAP4rev1", "IDLE", "MOVE", "UIDPLUS", "NAMESPACE", "SPECIAL-USE", "CREATE-SPECIAL-USE", "LIST-EXTENDED", "LIST-STATUS", "ESEARCH", "SEARCHRES", "UNSELECT", "ENABLE", "STATUS=SIZE", "APPENDLIMIT="} {
		if !strings.Contains(tagged, want) {
			t.Errorf("no %s in %s", want, tagged)
		}
	}
	if ns := c.ok("NAMESPACE"); ns != `* NAMESPACE (("" "/")) NIL NIL` {
		t.Error(ns)
	}
	b.add("INBOX", letter)
	b.add("INBOX", letter, mailbox.Seen, "$Work")
	sel := c.ok("SELECT inbox")
	for _, want := range []string{"* 2 EXISTS", "* 0 RECENT", "[UNSEEN 1]", "[UIDNEXT 3]", `\Deleted`, "$work", `\*`} {
		if !strings.Contains(sel, want) {
			t.Errorf("no %s in %s", want, sel)
		}
	}
	for command, want := range map[string]string{
		"FETCH 1 FLAGS":                                `* 1 FETCH (FLAGS ())`,
		"FETCH 2 (UID FLAGS)":                          `* 2 FETCH (UID 2 FLAGS ($work \Seen))`,
		"UID FETCH 1:* FLAGS":                          "* 1 FETCH (UID 1 FLAGS ())\n* 2 FETCH (UID 2 FLAGS ($work \\Seen))",
		"FETCH * UID":                                  "* 2 FETCH (UID 2)",
		"UID FETCH 77:99 FLAGS":                        "",
		"FETCH 1 (RFC822.SIZE INTERNALDATE)":           fmt.Sprintf(`* 1 FETCH (RFC822.SIZE %d INTERNALDATE " 2-Mar-2026 12:00:00 +0000")`, len(letter)),
		"FETCH 1 BODY.PEEK[]":                          fmt.Sprintf("* 1 FETCH (BODY[] {%d}\r\n%s)", len(letter), letter),
		"FETCH 1 BODY.PEEK[]<5.10>":                    "* 1 FETCH (BODY[]<5> {10}\r\n Joe <joe@)",
		"FETCH 1 BODY.PEEK[]<9999.10>":                 "* 1 FETCH (BODY[]<9999> {0}\r\n)",
		"FETCH 1 BODY.PEEK[TEXT]":                      "* 1 FETCH (BODY[TEXT] {26}\r\nHello Ann,\r\nhow are you?\r\n)",
		"FETCH 1 BODY.PEEK[1]":                         "* 1 FETCH (BODY[1] {26}\r\nHello Ann,\r\nhow are you?\r\n)",
		"FETCH 1 BODY.PEEK[2]":                         "* 1 FETCH (BODY[2] {0}\r\n)",
		"FETCH 1 BODY.PEEK[HEADER.FIELDS (to x-long)]": "* 1 FETCH (BODY[HEADER.FIELDS (\"to\" \"x-long\")] {38}\r\nTo: ann@example.org\r\nX-Long: a\r\n b\r\n\r\n)",
		"FETCH 1 RFC822.HEADER":                        fmt.Sprintf("* 1 FETCH (RFC822.HEADER {%d}\r\n%s)", len(letter)-26, letter[:len(letter)-26]),
		"FETCH 1 ENVELOPE":                             `* 1 FETCH (ENVELOPE ("Sun, 01 Mar 2026 10:00:00 +0100" "=?utf-8?q?Gr=C3=BC=C3=9Fe?=" (("Joe" NIL "joe" "example.com")) (("Joe" NIL "joe" "example.com")) (("Joe" NIL "joe" "example.com")) ((NIL NIL "ann" "example.org")) NIL NIL NIL "<1@example.com>"))`,
		"FETCH 1 BODY":                                 `* 1 FETCH (BODY ("text" "plain" NIL NIL NIL "7bit" 26 2))`,
		"SEARCH UNSEEN":                                "* SEARCH 1",
		"SEARCH KEYWORD $work":                         "* SEARCH 2",
		"UID SEARCH ALL":                               "* SEARCH 1 2",
		"SEARCH SUBJECT \"gr\"":                        "* SEARCH 1 2",
		"SEARCH BODY \"HOW ARE\" UNSEEN":               "* SEARCH 1",
		"SEARCH TEXT nowhere":                          "* SEARCH",
		"SEARCH SENTON 1-Mar-2026":                     "* SEARCH 1 2",
		"SEARCH SENTBEFORE 1-Mar-2026":                 "* SEARCH",
		"SEARCH ON 2-Mar-2026":                         "* SEARCH 1 2",
		"SEARCH SINCE 3-Mar-2026":                      "* SEARCH",
		"SEARCH LARGER 10 NOT SEEN":                    "* SEARCH 1",
		"SEARCH OR SEEN SMALLER 5":                     "* SEARCH 2",
		"SEARCH HEADER X-Long \"\"":                    "* SEARCH 1 2",
		"SEARCH 2:*":                                   "* SEARCH 2",
		"SEARCH NEW":                                   "* SEARCH",
		"STATUS INBOX (MESSAGES UNSEEN UIDNEXT)":       `* STATUS INBOX (MESSAGES 2 UIDNEXT 3 UNSEEN 1)`,
	} {
		if got := c.ok(command); got != want {
			t.Errorf("%s:\n%q, not\n%q", command, got, want)
		}
	}
	c.send(string(c.tag) + " SEARCH CHARSET UTF-8 SUBJECT {7+}\r\nGR\u00fc\u00dfe\r\n")
	if got, _ := c.rest(); len(got) != 1 || got[0] != "* SEARCH 1 2" {
		t.Error(got)
	}
	if got := c.ok("SEARCH RETURN (MIN MAX COUNT) ALL"); !strings.HasSuffix(got, "MIN 1 MAX 2 COUNT 2") {
		t.Error(got)
	}
	c.ok("UID SEARCH RETURN (SAVE) UNSEEN")
	if got := c.ok("UID FETCH $ FLAGS"); got != "* 1 FETCH (UID 1 FLAGS ())" {
		t.Error(got)
	}
	// Reading sets \Seen, and says so.
	if got := c.ok("FETCH 1 BODY[1]<0.5>"); got != "* 1 FETCH (FLAGS (\\Seen) BODY[1]<0> {5}\r\nHello)" {
		t.Errorf("%q", got)
	}
	for _, bad := range []string{"FETCH 3 FLAGS", "FETCH 1:3 FLAGS", "FETCH 1 BINARY[1]", "FETCH 1 X", "STORE 1 X (a)"} {
		c.no(bad, "BAD")
	}
	c.ok("LOGOUT")
}

func TestStoreExpungeMove(t *testing.T) {
	b := newBench(t, nil)
	for range 5 {
		b.add("INBOX", letter)
	}
	c := b.session()
	c.ok("SELECT INBOX")
	if got := c.ok(`STORE 1:2 +FLAGS (\seen \FLAGGED Work)`); got != "* 1 FETCH (UID 1 FLAGS (\\Flagged \\Seen work))\n* 2 FETCH (UID 2 FLAGS (\\Flagged \\Seen work))" {
		t.Error(got)
	}
	if got := c.ok(`UID STORE 2 -FLAGS.SILENT (\Flagged)`); got != "" {
		t.Errorf("SILENT: %s", got)
	}
	if got := c.ok(`STORE 2 FLAGS (\Recent)`); got != "* 2 FETCH (UID 2 FLAGS ())" {
		t.Error(got)
	}
	c.ok(`STORE 1,3 +FLAGS.SILENT (\Deleted)`)
	if got := c.ok("UID EXPUNGE 3:5"); got != "* 3 EXPUNGE" {
		t.Error(got)
	}
	if got := c.ok("EXPUNGE"); got != "* 1 EXPUNGE" {
		t.Error(got)
	}
	c.no("COPY 1 Nowhere", "NO [TRYCREATE]")
	c.no("MOVE 1 Nowhere", "NO [TRYCREATE]")
	c.ok("CREATE Archive/2026")
	if _, tagged := c.do("COPY 1:2 Archive/2026"); !strings.Contains(tagged, "COPYUID") || !strings.Contains(tagged, " 2,4 1:2]") {
		t.Error(tagged)
	}
	if got := c.ok("UID MOVE 4 Archive"); !strings.Contains(got, "COPYUID") || !strings.HasSuffix(got, "* 2 EXPUNGE") {
		t.Error(got)
	}
	if got := c.ok("UID MOVE 99 Archive"); got != "" {
		t.Error(got)
	}
	if _, tagged := c.do("COPY 1 INBOX"); !strings.Contains(tagged, "COPYUID") { // into itself
		t.Error(tagged)
	}
	if got := c.ok("NOOP"); got != "" { // it was told with the copy
		t.Error(got)
	}
	// CLOSE removes without a word.
	c.ok(`STORE 1 +FLAGS.SILENT (\Deleted)`)
	if got := c.ok("CLOSE"); got != "" {
		t.Error(got)
	}
	if got := c.ok("STATUS INBOX (MESSAGES)"); got != "* STATUS INBOX (MESSAGES 2)" {
		t.Error(got)
	}
	c.no("FETCH 1 FLAGS", "BAD")
}

// EXAMINE changes nothing, whatever is tried.
func TestReadOnly(t *testing.T) {
	b := newBench(t, nil)
	b.add("INBOX", letter, mailbox.Deleted)
	c := b.session()
	if _, tagged := c.do("EXAMINE INBOX"); !strings.HasPrefix(tagged, "OK [READ-ONLY]") {
		t.Error(tagged)
	}
	for _, command := range []string{`STORE 1 +FLAGS (\Seen)`, "EXPUNGE", "UID EXPUNGE 1", "MOVE 1 INBOX"} {
		c.no(command, "NO")
	}
	c.ok("FETCH 1 BODY[]")
	c.ok("COPY 1 INBOX") // that changes the mailbox as any other session would
	c.ok("CLOSE")
	snap, err := b.box("INBOX").Snapshot(t.Context())
	if err != nil || len(snap.Messages) != 2 || mailbox.HasFlag(snap.Messages[0].Flags, mailbox.Seen) {
		t.Errorf("%+v, %v", snap, err)
	}
}

// Two sessions, one mailbox: each learns what the other does, at the right time.
func TestTwoSessions(t *testing.T) {
	b := newBench(t, nil)
	for range 3 {
		b.add("INBOX", letter)
	}
	one, two := b.session(), b.session()
	one.ok("SELECT INBOX")
	two.ok("SELECT INBOX")
	one.ok(`STORE 2 +FLAGS.SILENT (\Deleted \Seen)`)
	if got := two.ok("NOOP"); got != `* 2 FETCH (UID 2 FLAGS (\Deleted \Seen))` {
		t.Error(got)
	}
	one.ok("EXPUNGE")
	b.add("INBOX", letter)
	// Numbers do not move during FETCH, STORE and SEARCH; new messages may be told.
	if got := two.ok("FETCH 3 UID"); got != "* 3 FETCH (UID 3)\n* 4 EXISTS" {
		t.Error(got)
	}
	if got := two.no("FETCH 1:3 (UID FLAGS)", "NO [EXPUNGEISSUED]"); got != "* 1 FETCH (UID 1 FLAGS ())\n* 3 FETCH (UID 3 FLAGS ())" {
		t.Error(got)
	}
	if got := two.ok("SEARCH ALL"); got != "* SEARCH 1 3 4" {
		t.Error(got)
	}
	if got := two.no(`STORE 2:3 +FLAGS (\Flagged)`, "NO [EXPUNGEISSUED]"); got != `* 3 FETCH (UID 3 FLAGS (\Flagged))` {
		t.Error(got)
	}
	two.no("COPY 1:2 INBOX", "NO [EXPUNGEISSUED]")
	if got := two.ok("NOOP"); got != "* 2 EXPUNGE" {
		t.Error(got)
	}
	if got := one.ok("NOOP"); got != "* 3 EXISTS\n* 2 FETCH (UID 3 FLAGS (\\Flagged))" {
		t.Error(got)
	}
	// A client that wants no reply is told what others did.
	two.ok(`STORE 1 +FLAGS.SILENT (\Draft)`)
	if got := one.ok(`STORE 1 +FLAGS.SILENT (\Answered)`); got != `* 1 FETCH (UID 1 FLAGS (\Answered \Draft))` {
		t.Error(got)
	}
	if got := two.ok("NOOP"); got != `* 1 FETCH (UID 1 FLAGS (\Answered \Draft))` {
		t.Error(got)
	}
	// So much happens that the store forgets the beginning.
	for range 30 {
		uid := b.add("INBOX", letter)
		if _, err := b.box("INBOX").Expunge(t.Context(), []mailbox.UID{uid, 1}, mailbox.ExpungeOptions{Any: true}); err != nil {
			t.Fatal(err)
		}
	}
	if got := two.ok("NOOP"); got != "* 1 EXPUNGE" {
		t.Error(got)
	}
	if got := two.ok("UID FETCH 1:* FLAGS"); got != "* 1 FETCH (UID 3 FLAGS (\\Flagged))\n* 2 FETCH (UID 4 FLAGS ())" {
		t.Error(got)
	}
}

func TestIdle(t *testing.T) {
	b := newBench(t, nil)
	uid := b.add("INBOX", letter)
	c := b.session()
	c.ok("SELECT INBOX")
	c.send(string(c.tag) + " IDLE\r\n")
	c.want("+")
	b.add("INBOX", letter)
	c.want("* 2 EXISTS")
	if _, err := b.box("INBOX").SetFlags(t.Context(), []mailbox.UID{uid}, mailbox.FlagChange{Flags: []mailbox.Flag{mailbox.Flagged}}); err != nil {
		t.Fatal(err)
	}
	c.want(`* 1 FETCH (UID 1 FLAGS (\Flagged))`)
	if _, err := b.box("INBOX").Expunge(t.Context(), []mailbox.UID{uid}, mailbox.ExpungeOptions{Any: true}); err != nil {
		t.Fatal(err)
	}
	c.want("* 1 EXPUNGE")
	c.send("DONE\r\n")
	if _, tagged := c.rest(); !strings.HasPrefix(tagged, "OK") {
		t.Error(tagged)
	}
	c.ok("NOOP")
	// Nothing selected: it waits, and ends.
	c.ok("UNSELECT")
	c.send(string(c.tag) + " IDLE\r\n")
	c.want("+")
	c.send("DONE\r\n")
	c.rest()
	// A client that goes away in the middle of it.
	c.send(string(c.tag) + " IDLE\r\n")
	c.want("+")
	c.nc.Close()
}

func TestMailboxes(t *testing.T) {
	b := newBench(t, nil)
	c := b.session()
	c.ok("CREATE Sent (USE (\\Sent))")
	c.no("CREATE Sent2 (USE (\\Sent))", "NO [ALREADYEXISTS]")
	c.no("CREATE X (USE (\\Nonsense))", "NO [USEATTR]")
	c.ok("CREATE Work/Projects/")
	c.ok(`CREATE "Entw&APw-rfe"`)
	c.no("CREATE INBOX", "NO [ALREADYEXISTS]")
	c.no("CREATE \"a//b\"", "NO [CANNOT]")
	c.no("DELETE INBOX", "NO [CANNOT]")
	c.no("DELETE Nowhere", "NO [NONEXISTENT]")
	c.no("SELECT Nowhere", "NO [NONEXISTENT]")
	c.no("STATUS Nowhere (MESSAGES)", "NO [NONEXISTENT]")
	c.ok("SUBSCRIBE Work/Projects")
	c.ok("SUBSCRIBE Gone/Away")
	for command, want := range map[string]string{
		`LIST "" ""`:                               `* LIST (\Noselect) "/" ""`,
		`LIST "" %`:                                "* LIST (\\HasNoChildren) \"/\" INBOX\n* LIST (\\HasNoChildren) \"/\" \"Entw&APw-rfe\"\n* LIST (\\HasNoChildren \\Sent) \"/\" \"Sent\"\n* LIST (\\HasChildren) \"/\" \"Work\"",
		`LIST Work *`:                              `* LIST (\HasNoChildren) "/" "Work/Projects"`,
		`LIST "" (inbox Sent)`:                     "* LIST (\\HasNoChildren) \"/\" INBOX\n* LIST (\\HasNoChildren \\Sent) \"/\" \"Sent\"",
		`LIST (SUBSCRIBED) "" *`:                   "* LIST (\\NonExistent \\Noselect \\Subscribed) \"/\" \"Gone/Away\"\n* LIST (\\Subscribed \\HasNoChildren) \"/\" \"Work/Projects\"",
		`LIST (SPECIAL-USE) "" *`:                  `* LIST (\HasNoChildren \Sent) "/" "Sent"`,
		`LIST (SUBSCRIBED RECURSIVEMATCH) "" Work`: `* LIST (\HasChildren) "/" "Work" (CHILDINFO ("SUBSCRIBED"))`,
		`LSUB "" %`:                                "* LSUB (\\Noselect) \"/\" \"Gone\"\n* LSUB (\\Noselect) \"/\" \"Work\"",
		`LSUB "" Work/%`:                           `* LSUB (\Subscribed \HasNoChildren) "/" "Work/Projects"`,
		`LIST (SUBSCRIBED) "" %`:                   "",
		`LSUB "" "Work/*"`:                         `* LSUB (\Subscribed \HasNoChildren) "/" "Work/Projects"`,
	} {
		if got := c.ok(command); got != want {
			t.Errorf("%s:\n%s\nnot\n%s", command, got, want)
		}
	}
	if got := c.ok(`LIST "" INBOX RETURN (STATUS (MESSAGES SIZE))`); !strings.Contains(got, "* STATUS INBOX (MESSAGES 0 SIZE 0)") {
		t.Error(got)
	}
	c.ok("CREATE " + strings.Repeat("a", 900))
	if got := c.ok(`LIST "" "` + strings.Repeat("*a", 400) + `*b"`); got != "" {
		t.Error(got)
	}
	c.no(`LIST "" "`+strings.Repeat("*a", 600)+`"`, "NO [LIMIT]")
	c.ok("DELETE " + strings.Repeat("a", 900))
	c.ok("RENAME Work Play")
	if got := c.ok(`LIST "" Play/%`); got != `* LIST (\HasNoChildren) "/" "Play/Projects"` {
		t.Error(got)
	}
	c.no("RENAME Play Sent", "NO [ALREADYEXISTS]")
	// A mailbox that goes away under a session.
	b.add("Sent", letter)
	c.ok("SELECT Sent")
	other := b.session()
	other.ok("DELETE Sent")
	c.no("FETCH 1 FLAGS", "NO [NONEXISTENT]")
	if got := c.ok("NOOP"); got != "* 1 EXPUNGE" {
		t.Error(got)
	}
	c.ok("SELECT INBOX")
	if got := c.ok("STATUS INBOX (DELETED DELETED-STORAGE APPENDLIMIT RECENT UIDVALIDITY)"); !strings.Contains(got, "DELETED 0") {
		t.Error(got)
	}
}

func TestAppend(t *testing.T) {
	b := newBench(t, func(s *Server) { s.Limits.MaxMessage = 200 << 10 })
	c := b.session()
	c.ok("SELECT INBOX")
	put := func(command, text string) (string, string) {
		c.send(fmt.Sprintf("%c APPEND %s {%d}\r\n", c.tag, command, len(text)))
		if s := c.line(); !strings.HasPrefix(s, "+") {
			c.tag++
			return "", s[2:]
		}
		c.send(text + "\r\n")
		u, tagged := c.rest()
		return strings.Join(u, "\n"), tagged
	}
	big := letter + strings.Repeat("0123456789abcde\n", 10<<10)
	for i, text := range []string{letter, big, ""} {
		got, tagged := put(`INBOX (\seen Work) "01-Mar-2026 10:00:00 +0100"`, text)
		if !strings.HasPrefix(tagged, "OK [APPENDUID ") || got != fmt.Sprintf("* %d EXISTS", i+1) {
			t.Errorf("%d octets: %q, %s", len(text), got, tagged)
		}
		if got := c.ok(fmt.Sprintf("FETCH %d (FLAGS INTERNALDATE BODY.PEEK[])", i+1)); got != fmt.Sprintf("* %d FETCH (FLAGS (\\Seen work) INTERNALDATE \" 1-Mar-2026 09:00:00 +0000\" BODY[] {%d}\r\n%s)", i+1, len(text), text) {
			t.Errorf("%.200q", got)
		}
	}
	for command, want := range map[string]string{"Nowhere": "NO [TRYCREATE]", `INBOX (\Nonsense)`: "NO [CANNOT]"} {
		if _, tagged := put(command, letter); !strings.HasPrefix(tagged, want) {
			t.Errorf("%s: %s", command, tagged)
		}
	}
	if _, tagged := put("INBOX", strings.Repeat("x", 201<<10)); !strings.HasPrefix(tagged, "NO [TOOBIG]") {
		t.Error(tagged)
	}
	if err := b.account.SetQuota(t.Context(), mailbox.QuotaLimit{Messages: 3}); err != nil {
		t.Fatal(err)
	}
	if _, tagged := put("INBOX", letter); !strings.HasPrefix(tagged, "NO [OVERQUOTA]") {
		t.Error(tagged)
	}
	c.ok("NOOP")
}

func TestAuth(t *testing.T) {
	b := newBench(t, func(s *Server) { s.Limits.MaxAuthFailures = -1 })
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	c := b.dialTLS()
	for command, want := range map[string]string{
		"AUTHENTICATE LOGIN": "NO",
		"AUTHENTICATE PLAIN " + b64("\x00"+user+"\x00wrong"):                  "NO [AUTHENTICATIONFAILED]",
		"AUTHENTICATE PLAIN " + b64("x\x00"+user+"\x00"+password):             "NO [AUTHENTICATIONFAILED]",
		"AUTHENTICATE PLAIN " + b64("\x00"+strings.Repeat("u", 1025)+"\x00x"): "NO [AUTHENTICATIONFAILED]",
		"AUTHENTICATE PLAIN " + b64("no zero"):                                "BAD",
		"LOGIN nobody x":                                                      "NO [AUTHENTICATIONFAILED]",
		"LOGIN bug x":                                                         "NO [UNAVAILABLE]",
		"LOGIN nothing x":                                                     "NO [UNAVAILABLE]",
	} {
		c.no(command, want)
	}
	c.send("z AUTHENTICATE PLAIN\r\n")
	c.want("+")
	c.send(b64(user+"\x00"+user+"\x00"+password) + "\r\n")
	c.want("z OK")
	c.no("LOGIN a b", "BAD")
	if st := b.Stats(); st.AuthOK != 1 || st.AuthBad != 4 {
		t.Errorf("%+v", st)
	}
	// Guesses end the connection.
	b = newBench(t, nil)
	c = b.dialTLS()
	for range 3 {
		c.no("LOGIN nobody x", "NO [AUTHENTICATIONFAILED]")
	}
	c.want("* BYE")
	c.eof()
}

func TestLimits(t *testing.T) {
	b := newBench(t, func(s *Server) { s.Limits.MaxConns = 1 })
	c := b.dialTLS()
	refused := b.dial()
	refused.want("* BYE [UNAVAILABLE] Too many connections")
	refused.eof()
	c.ok("LOGOUT")
	b = newBench(t, func(s *Server) { s.Limits.MaxConnsPerAddr = 1 })
	b.dial().want("* OK")
	b.dial().want("* BYE [UNAVAILABLE] Too many connections from")
	b = newBench(t, func(s *Server) { s.Limits.Login = 50 * time.Millisecond })
	c = b.dialTLS()
	c.want("* BYE Log in sooner")
	c.eof()
	b = newBench(t, func(s *Server) { s.Limits.Handshake = 50 * time.Millisecond })
	nc, err := net.Dial("tcp", b.implicit)
	if err != nil {
		t.Fatal(err)
	}
	newClient(t, nc).eof() // silent, and cut off
}

// Shutdown lets commands end, says goodbye to those who wait, idle or not, and loses nobody.
func TestShutdown(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	b := newBench(t, func(s *Server) {
		inner := s.Auth
		s.Auth = mailspine.AuthenticatorFunc(func(ctx context.Context, c mailspine.Credentials) (*mailspine.Login, error) {
			if c.Username == "slow" {
				close(started)
				<-release
			}
			return inner.Authenticate(ctx, c)
		})
	})
	waiting, idling, busy := b.session(), b.session(), b.dialTLS()
	idling.ok("SELECT INBOX")
	idling.send("i IDLE\r\n")
	idling.want("+")
	busy.send("b LOGIN slow x\r\n")
	<-started
	done := make(chan error)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done <- b.Shutdown(ctx)
	}()
	for _, c := range []*client{waiting, idling} {
		c.want("* BYE Shutting down")
		c.eof()
	}
	close(release)
	busy.want("b NO")
	busy.want("* BYE Shutting down")
	busy.eof()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if st := b.Stats(); st.Conns != 0 {
		t.Errorf("%+v", st)
	}
	if _, err := net.Dial("tcp", b.plain); err == nil {
		t.Error("it still listens")
	}
}

func TestNotReady(t *testing.T) {
	b := newBench(t, nil)
	for _, s := range []*Server{{}, {TLSConfig: b.TLSConfig, Auth: users}, {TLSConfig: b.TLSConfig, Mailboxes: b.Mailboxes}, {Auth: users, Mailboxes: b.Mailboxes}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Serve(l); err == nil {
			t.Error("it serves")
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error("the listener is open")
		}
	}
}

// What is put behind STARTTLS does not count under TLS, and nothing goes on in clear after it.
func TestSTARTTLSInjection(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial()
	c.want("* OK")
	c.send("a STARTTLS\r\nb NOOP\r\n")
	c.want("a BAD")
	c.eof()
	c = b.dial()
	c.want("* OK")
	c.send("a STARTTLS\r\n")
	c.want("a OK")
	c.send("b NOOP\r\nb NOOP\r\nb NOOP\r\nb NOOP\r\n")
	if rest, _ := io.ReadAll(c.r); strings.Contains(string(rest), "b OK") {
		t.Errorf("%q", rest)
	}
}

// Before TLS there is little to say.
func TestBeforeTLS(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial()
	c.want("* OK")
	for command, want := range map[string]string{
		"NOOP": "OK", "CAPABILITY": "OK", "LOGIN a b": "NO [PRIVACYREQUIRED]", "AUTHENTICATE PLAIN": "NO [PRIVACYREQUIRED]", "SELECT INBOX": "BAD", "IDLE": "BAD",
	} {
		if _, tagged := c.do(command); !strings.HasPrefix(tagged, want) {
			t.Errorf("%s: %s", command, tagged)
		}
	}
	for _, bad := range []string{"", "x", "* NOOP", "(x) NOOP", "\x00 NOOP"} {
		c.send(bad + "\r\n")
		c.want("* BAD")
	}
	c.ok("LOGOUT")
	for _, bad := range []string{"a LOGIN {5}\r\n", "a LOGIN {5+}\r\nabcde x\r\n", strings.Repeat("x", 5000)} {
		c := b.dial()
		c.want("* OK")
		go io.WriteString(c.nc, bad)
		c.want("* BYE")
	}
	c = b.dial()
	c.want("* OK")
	for range 20 {
		c.ok("NOOP")
	}
	c.want("* BYE")
	c.eof()
}

// The octets of a literal that is refused are no commands, whatever the client does.
func TestRefusedLiterals(t *testing.T) {
	b := newBench(t, func(s *Server) { s.Limits.MaxMessage = 100 << 10 })
	inject := "x CREATE Hacked\r\n"
	for _, size := range []int{200, 5000, 50_000, 200_000} {
		text := inject + strings.Repeat("a", size)
		for _, command := range []string{"APPEND INBOX", "APPEND Nowhere", "APPEND INBOX (\\Bad[)", "NONSENSE", "SEARCH TEXT", "SEARCH CHARSET X TEXT", "SEARCH NONSENSE", "CREATE", "SELECT", "LIST"} {
			for _, plus := range []string{"+", ""} {
				c := b.session()
				c.send(fmt.Sprintf("y %s {%d%s}\r\n", command, len(text), plus))
				if plus != "" {
					c.send(text + "\r\n")
				} else if s := c.line(); strings.HasPrefix(s, "+") { // it waits to be asked
					c.send(text + "\r\n")
				} else if !strings.HasPrefix(s, "y ") {
					t.Fatalf("%s with %d octets: %s", command, len(text), s)
				}
				c.send("z LOGOUT\r\n")
				rest, _ := io.ReadAll(c.r)
				said := "\n" + string(rest)
				if strings.Contains(said, "\nx ") {
					t.Fatalf("%s with %d%s octets: %q", command, len(text), plus, said)
				}
				// The engine hangs up on a mailbox name that is none; all else goes on.
				if name := command == "CREATE" || command == "SELECT" || command == "LIST"; !name && !strings.Contains(said, "\nz OK") {
					t.Errorf("%s with %d%s octets ends with %q", command, len(text), plus, said)
				}
			}
		}
	}
	c := b.session()
	if got := c.ok(`LIST "" *`); strings.Contains(got, "Hacked") {
		t.Error(got)
	}
	// Several in one command, of which the first is refused.
	big := strings.Repeat("b", 5000)
	c.send(fmt.Sprintf("y SEARCH TEXT {%d+}\r\n%s TEXT {%d+}\r\n%s%s\r\n", len(big), big, len(inject), inject, " SEEN"))
	c.want("y ")
	c.ok("NOOP")
	if got := c.ok(`LIST "" *`); strings.Contains(got, "Hacked") {
		t.Error(got)
	}
	// LITERAL+ is offered, and taken.
	c.send(fmt.Sprintf("y APPEND INBOX {%d+}\r\n%s\r\n", len(big), big))
	c.want("y OK [APPENDUID")
}

func TestAnnouncement(t *testing.T) {
	for line, want := range map[string]int64{
		"a {5}\r\n": 5, "a {5+}\r\n": 5, "a ~{12+}\r\n": 12, "{0}\r\n": 0, "a {5}\n": 5, "a {5} \r\n": 5, "a {5+} \n": 5, "a {000000000000000000000000000005+}\r\n": 5, "a {5}  \r\n": -1, "a {+}\r\n": -1, "a {}\r\n": -1, "a 5}\r\n": -1,
		"a {-5}\r\n": -1, "a {+5}\r\n": -1, "a {99999999999999999999}\r\n": -1, "a \"{5}\"\r\n": -1, "a\r\n": -1, "\r\n": -1, "}\r\n": -1, "+}\r\n": -1,
	} {
		n, plus, brace, ok := announcement([]byte(line))
		if ok != (want >= 0) || ok && (n != want || plus != strings.Contains(line, "+}") || line[brace] != '}' && line[brace] != '+') {
			t.Errorf("%q: %d, %t, %d, %t", line, n, plus, brace, ok)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		name, ref, pattern string
		want               bool
	}{
		{"a", "", "a", true}, {"a", "", "*", true}, {"a", "", "%", true}, {"a/b", "", "%", false}, {"a/b", "", "*", true}, {"a/b", "", "a/%", true},
		{"a/b", "a/", "%", true}, {"a/b", "a/", "/a/b", true}, {"a/b/c", "", "a/%", false}, {"a/b/c", "", "%/%/%", true}, {"a/b/c", "", "a*c", true},
		{"a", "", "", false}, {"a", "", "A", false}, {"INBOX", "", "inbox", true}, {"INBOX/x", "", "Inbox/%", true}, {"INBOX", "", "in%", false}, {"ab", "", "a%b", true}, {"ab", "", "a%%**b", true},
	} {
		if got := match(tt.name, tt.ref, tt.pattern); got != tt.want {
			t.Errorf("%q with %q %q: %t", tt.name, tt.ref, tt.pattern, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching("[ab/]{0,8}").Draw(t, "name")
		pattern := rapid.StringMatching("[ab*%][ab/*%]{0,6}").Draw(t, "pattern")
		if got, want := match(name, "", pattern), imapserver.MatchList(name, delim, "", pattern); got != want {
			t.Fatalf("%q with %q: %t, MatchList says %t", name, pattern, got, want)
		}
	})
}

// lineWriter hands on what is logged.
type lineWriter chan string

func (w lineWriter) Write(b []byte) (int, error) {
	w <- string(b)
	return len(b), nil
}

// A part that panics is seen: in the log and in the counts.
func TestPanic(t *testing.T) {
	log := make(lineWriter, 10)
	b := newBench(t, func(s *Server) {
		s.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelError}))
		s.Auth = mailspine.AuthenticatorFunc(func(context.Context, mailspine.Credentials) (*mailspine.Login, error) { panic("bug") })
	})
	c := b.dialTLS()
	c.send("a LOGIN x y\r\n")
	io.ReadAll(c.r)
	if line := <-log; !strings.Contains(line, "bug") || b.Stats().Errors != 1 {
		t.Errorf("%q, %+v", line, b.Stats())
	}
	b.dialTLS().ok("LOGOUT") // the server goes on
}

// Text is found as it is read, whatever it is encoded in.
func TestSearchDecodes(t *testing.T) {
	b := newBench(t, nil)
	b.add("INBOX", "Subject: =?iso-8859-1?q?K=F6ln?=\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nGr=FC=DFe aus K=F6=\r\nln\r\n")
	b.add("INBOX", "Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Transfer-Encoding: base64\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"+base64.StdEncoding.EncodeToString([]byte("Grüße aus Bonn"))+"\r\n--x\r\nContent-Type: application/pdf\r\n\r\nGrüße\r\n--x--\r\n")
	b.add("INBOX", "Content-Type: text/plain; charset=no-such\r\n\r\nplain\r\n")
	c := b.session()
	c.ok("SELECT INBOX")
	for what, want := range map[string]string{"SUBJECT köln": "1", "BODY GRÜSSE": "", "BODY GRÜßE": "1 2", "BODY köln": "1", "TEXT köln": "1", "BODY bonn": "2", "BODY plain": "3", "BODY pdf": "", "TEXT pdf": ""} {
		key, text, _ := strings.Cut(what, " ")
		c.send(fmt.Sprintf("%c SEARCH CHARSET UTF-8 %s {%d+}\r\n%s\r\n", c.tag, key, len(text), text))
		if got, _ := c.rest(); len(got) != 1 || strings.TrimSpace(strings.TrimPrefix(got[0], "* SEARCH")) != want {
			t.Errorf("%s: %q, not %q", what, got, want)
		}
	}
}
