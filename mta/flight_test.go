package mta

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta/smtpclient"
)

// More recipients than a flight has room for go in several: none is larger than maxFlight, the message is the last to
// go, and each recipient has the result that is his.
func TestRelayFlights(t *testing.T) {
	for _, recipients := range []int{1, 40, 41, 42, 43, 44, 45, 100, 1000, -1, -40, -41, -42, -43, -44, -45, -100, -1000} {
		chunks := recipients < 0
		recipients = max(recipients, -recipients)
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			n.mx("dest.example", "192.0.2.1")
			r := n.relay()
			r.MaxRecipients = 1000
			var sizes []int
			r.Dial = func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				n.wg.Go(func() {
					(&policy{limit: 1000, chunks: chunks, refuse: map[string]int{"7": 550, "42": 450}}).serve(server)
				})
				return &sizer{client, &sizes}, nil
			}
			var to []string
			octets := len("MAIL FROM:<ann@sender.example>\r\nDATA\r\n")
			for i := range recipients {
				to = append(to, strings.Repeat("x", 60)+fmt.Sprintf("-%d@dest.example", i))
				octets += len("RCPT TO:<>\r\n") + len(to[i])
			}
			msg := large
			if chunks {
				// The message goes with the last flight.
				msg = "x\r\n"
				octets += len("BDAT 3 LAST\r\nx\r\n") - len("DATA\r\n")
			}
			err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", to...), mailspine.StringContent(msg))
			for i := range to {
				want := map[int]string{7: "550 5.0.0", 42: "450 4.0.0"}[i]
				wantStatus(t, to[i], mailspine.ErrorAt(err, i), want)
			}
			// EHLO, the flights, the pieces of the message, the dot, QUIT.
			flights, sum := 0, 0
			for _, n := range sizes[1:] {
				if n > maxFlight+len("x\r\n") || n == len("QUIT\r\n") {
					break
				}
				flights++
				sum += n
			}
			if want := (octets + maxFlight - 1) / maxFlight; sum != octets || flights < want || flights > want+1 {
				t.Errorf("%d octets for %d recipients in %d flights, want %d in %d", sum, recipients, flights, octets, want)
			}
			n.wg.Wait()
		})
	}
}

type sizer struct {
	net.Conn
	sizes *[]int
}

func (s *sizer) Write(p []byte) (int, error) {
	*s.sizes = append(*s.sizes, len(p))
	return s.Conn.Write(p)
}

// A policy is a server that decides in the same way however commands arrive.
type policy struct {
	mail    []int          // the codes of MAIL, in turn; none: 250
	refuse  map[string]int // local part, behind the last hyphen, to the code of RCPT
	limit   int            // recipients of a transaction; more get 452
	lenient bool           // after too many, the next one is taken again
	data    []int          // the codes of DATA, in turn; none: 354. Without recipients it is empty
	empty   int            // the code of DATA without recipients: 354 or a refusal
	message []int          // the codes of messages, in turn; none: 250
	quits   int            // after so many commands it hangs up with 421; 0: never
	mute    bool           // and without it
	chunks  bool           // it offers CHUNKING

	got []string // the recipients of each message that was taken
}

func (p *policy) serve(conn net.Conn) {
	defer conn.Close()
	br := bufio.NewReaderSize(conn, maxFlight)
	say := func(code int) { fmt.Fprintf(conn, "%d what\r\n", code) }
	turn := func(codes *[]int, otherwise int) int {
		if len(*codes) == 0 {
			return otherwise
		}
		code := (*codes)[0]
		*codes = (*codes)[1:]
		return code
	}
	say(220)
	var rcpts []string
	inMail, skipped := false, false
	for commands := 0; ; commands++ {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		if p.quits > 0 && commands == p.quits {
			if !p.mute {
				say(421)
			}
			return
		}
		verb, arg, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), " ")
		switch verb {
		case "EHLO":
			if p.chunks {
				fmt.Fprint(conn, "250-hi\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
			} else {
				fmt.Fprint(conn, "250-hi\r\n250 PIPELINING\r\n")
			}
		case "QUIT":
			say(221)
			return
		case "RSET":
			inMail, rcpts = false, nil
			say(250)
		case "MAIL":
			if inMail {
				say(503)
				break
			}
			code := turn(&p.mail, 250)
			inMail, rcpts, skipped = code == 250, nil, false
			say(code)
		case "RCPT":
			who := strings.TrimSuffix(arg[strings.LastIndexAny(arg, "-<")+1:], "@dest.example>")
			switch {
			case !inMail:
				say(503)
			case len(rcpts) >= p.limit && !(p.lenient && skipped):
				skipped = true
				say(452)
			case p.refuse[who] != 0:
				say(p.refuse[who])
			default:
				rcpts = append(rcpts, who)
				say(250)
			}
		case "DATA":
			code := 503
			switch {
			case inMail && len(rcpts) > 0:
				code = turn(&p.data, 354)
			case inMail && p.empty != 0:
				code = p.empty
			}
			say(code)
			if code != 354 {
				break
			}
			n := 0
			for line := ""; line != dotLine; n++ {
				if line, err = br.ReadString('\n'); err != nil {
					return
				}
			}
			if len(rcpts) == 0 {
				if n > 1 {
					p.got = append(p.got, "a message for nobody")
				}
				say(554)
			} else {
				code := turn(&p.message, 250)
				if code == 250 {
					p.got = append(p.got, strings.Join(rcpts, " "))
				}
				say(code)
			}
			inMail, rcpts = false, nil
		case "BDAT":
			// RFC 3030 section 2: the octets are read, whatever becomes of them.
			n, _ := strconv.Atoi(strings.TrimSuffix(arg, " LAST"))
			if _, err := io.CopyN(io.Discard, br, int64(n)); err != nil {
				return
			}
			if !inMail || len(rcpts) == 0 {
				say(503) // the transaction, if there is one, goes on until RSET
				break
			}
			code := turn(&p.data, 250) // what DATA would have been answered with
			if code == 354 || code == 250 {
				code = turn(&p.message, 250)
			}
			if code == 250 {
				p.got = append(p.got, strings.Join(rcpts, " "))
				inMail, rcpts = false, nil
			}
			say(code)
		default:
			say(500)
		}
	}
}

// With PIPELINING and without it, the results are the same for each recipient, and so is what the server got and who it
// heard of: over several deliveries on kept connections, whatever is refused.
func TestPipeliningChangesNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		codes := func(name string, of ...int) []int { return rapid.SliceOfN(rapid.SampledFrom(of), 0, 4).Draw(rt, name) }
		count := rapid.IntRange(1, 8).Draw(rt, "recipients")
		refuse := map[string]int{}
		for i := range count {
			if rapid.Bool().Draw(rt, "refused") {
				refuse[fmt.Sprint(i)] = rapid.SampledFrom([]int{550, 450, 551}).Draw(rt, "code")
			}
		}
		p := policy{
			mail: codes("mail", 250, 250, 550, 450), refuse: refuse, limit: rapid.IntRange(1, 8).Draw(rt, "limit"),
			data: codes("data", 354, 354, 451, 554), message: codes("message", 250, 250, 451, 554),
			empty: rapid.SampledFrom([]int{0, 354, 554}).Draw(rt, "empty"),
		}
		batch := rapid.IntRange(1, 8).Draw(rt, "batch")
		deliveries := rapid.IntRange(1, 3).Draw(rt, "deliveries")
		var first string
		for way := range 4 {
			pipelining, chunks := way&1 != 0, way&2 != 0
			result := ""
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1")
				r := n.relay()
				r.MaxRecipients, r.NoPipelining, r.IdleTimeout, r.MaxConnections = batch, !pipelining, 0, 1
				server := p
				server.chunks = chunks
				r.Dial = func(context.Context, string, string) (net.Conn, error) {
					client, conn := net.Pipe()
					n.wg.Go(func() { server.serve(conn) })
					return client, nil
				}
				l := &ledger{answer: func(req EgressRequest) ([]Grant, error) {
					return []Grant{{Recipients: req.Recipients}}, nil
				}}
				r.Egress = l
				var to []string
				for i := range count {
					to = append(to, fmt.Sprintf("%d@dest.example", i))
				}
				for range deliveries {
					err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", to...), mailspine.StringContent("x\r\n"))
					for i := range to {
						if st := mailspine.Status(mailspine.ErrorAt(err, i)); st != nil {
							result += fmt.Sprint(st.Code, " ")
						} else {
							result += "taken "
						}
					}
					result += "\n"
				}
				r.CloseIdle()
				n.wg.Wait()
				result += fmt.Sprintf("got %q", server.got)
				// In a flight the server hears also of those that are too many.
				if p.limit >= min(batch, count) {
					result += fmt.Sprintf(", heard of %q", l.done)
				}
			})
			if way == 0 {
				first = result
			} else if result != first {
				rt.Fatalf("one by one:\n%s\npipelining %v, chunking %v:\n%s", first, pipelining, chunks, result)
			}
		}
	})
}

// The same for a server that hangs up in the middle: nothing counts as taken that is not, and what was taken and does not count is
// in doubt; with DATA nothing is.
func TestPipeliningHangUp(t *testing.T) {
	for quits := 1; quits < 40; quits++ {
		for way := range 8 {
			lenient, chunks, mute := way&1 != 0, way&2 != 0, way&4 != 0
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.mx("dest.example", "192.0.2.1")
				r := n.relay()
				r.IdleTimeout = 0
				server := &policy{quits: quits, limit: 2, lenient: lenient, chunks: chunks, mute: mute, refuse: map[string]int{"3": 550}, empty: 354}
				r.Dial = func(context.Context, string, string) (net.Conn, error) {
					client, conn := net.Pipe()
					n.wg.Go(func() { server.serve(conn) })
					return client, nil
				}
				to := []string{"0@dest.example", "1@dest.example", "2@dest.example", "3@dest.example", "4@dest.example"}
				taken, doubt := map[string]int{}, map[string]int{}
				for range 3 {
					err := r.Deliver(t.Context(), envelope(t, "ann@sender.example", to...), mailspine.StringContent("x\r\n"))
					for i := range to {
						var d *smtpclient.InDoubtError
						switch e := mailspine.ErrorAt(err, i); {
						case e == nil:
							taken[to[i][:1]]++
						case errors.As(e, &d):
							doubt[to[i][:1]]++
							wantStatus(t, to[i], e, "451 4.4.2")
						}
					}
				}
				r.CloseIdle()
				n.wg.Wait()
				got := map[string]int{}
				for _, who := range strings.Fields(strings.Join(server.got, " ")) {
					got[who]++
				}
				for _, who := range []string{"0", "1", "2", "3", "4"} {
					if got[who] < taken[who] || got[who] > taken[who]+doubt[who] || !(chunks && mute) && got[who] != taken[who] {
						t.Errorf("after %d commands, chunks %v, mute %v: %s was delivered %d times, %d times it counts as taken, %d times it is in doubt",
							quits, chunks, mute, who, got[who], taken[who], doubt[who])
					}
				}
			})
		}
	}
}
