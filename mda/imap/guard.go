package imap

import (
	"bytes"
	"errors"
	"strconv"
	"sync"
)

// A guard stands between a client and the engine, and keeps octets of a literal from being taken for commands. The engine (go-imap
// v2.0.0-beta.8) refuses a literal before it reads it; with a non-synchronizing one ({n+}, RFC 7888) the octets come
// nevertheless, and it would go on with them as with the next command: with the text of a message, which
// strangers write. So the guard tells the engine of synchronizing literals only. It swallows the engine's "+" for the others,
// and throws away what was refused. And where the engine refuses a synchronizing literal but waits for the rest of the command, which
// a client does not send before it is asked to, the guard ends that command.
//
// All but written is called by the engine's reading goroutine.
type guard struct {
	in     []byte // received, and not looked at
	buf    []byte // holds in
	out    []byte // for the engine
	tail   []byte // of the line so far, held back: where an announcement may be
	state  guardState
	left   int64 // octets of the literal
	plus   bool  // the literal is non-synchronizing
	nudged bool  // the engine got the end of the command
	count  int   // literals of the command so far
	err    error // errGuard: it cannot go on

	mu      sync.Mutex
	waiting bool // for the engine's answer to an announcement
	asked   bool // it was "+"
	refused bool // it was a tagged one
}

type guardState int

const (
	inLine      guardState = iota
	announced              // a literal, and the engine has not said anything yet
	inLiteral              // octets go to the engine
	dropLiteral            // octets go nowhere, and then the rest of the command
	dropLine
)

const (
	guardBuffer = 4096
	// maxAnnouncement is the longest "{n+} \r\n". The engine takes any number of zeros.
	maxAnnouncement = 64
	// maxLiterals bounds those of one command: the engine holds up to 4 KiB for each, before anybody has logged in.
	maxLiterals = 64
	// goAhead is the engine's answer to an announcement that it accepts. Its other replies may begin with "+" too: tags may.
	goAhead = "+ Ready for literal data\r\n"
)

// errGuard is matched by errors that end the connection.
var errGuard = errors.New("[CLIENTBUG] The literal makes no sense")

// read returns what the engine shall see next. receive reads from the client.
func (g *guard) read(b []byte, receive func([]byte) (int, error)) (int, error) {
	for {
		if g.err != nil {
			return 0, g.err
		}
		if len(g.out) > 0 {
			n := copy(b, g.out)
			g.out = g.out[n:]
			return n, nil
		}
		if g.state == announced {
			if done, err := g.decide(); err != nil || !done {
				return 0, err
			}
			if len(g.out) > 0 {
				continue
			}
		}
		if len(g.in) == 0 {
			if g.buf == nil {
				g.buf = make([]byte, guardBuffer)
			}
			n, err := receive(g.buf)
			g.in = g.buf[:n]
			if n == 0 {
				if err != nil && len(g.tail) > 0 { // the end, in the middle of a line
					g.out, g.tail = g.tail, nil
					continue
				}
				return 0, err
			}
		}
		g.step()
	}
}

// decide goes on after an announcement, by what the engine has said. It is called when the engine wants to read.
func (g *guard) decide() (bool, error) {
	g.mu.Lock()
	asked, refused := g.asked, g.refused
	g.mu.Unlock()
	switch {
	case asked:
		g.state = inLiteral
	case refused && g.plus:
		g.state = dropLiteral
	case refused:
		g.state = inLine
	case g.nudged:
		return false, errGuard
	default:
		// It will refuse the literal, but wants the end of the command first.
		g.nudged = true
		g.out = []byte("\r\n")
		return true, nil
	}
	g.nudged = false
	g.mu.Lock()
	g.waiting = false
	g.mu.Unlock()
	if g.left == 0 && g.state == inLiteral {
		g.state = inLine
	}
	return true, nil
}

// written takes note of what the engine says, and reports whether the client shall see it.
func (g *guard) written(b []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.waiting || len(b) == 0 {
		return true
	}
	switch {
	case string(b) == goAhead:
		g.asked = true
		return !g.plus
	case b[0] != '*':
		g.refused = true
	}
	return true
}

// step takes in some of what was received.
func (g *guard) step() {
	switch g.state {
	case inLiteral, dropLiteral:
		n := int(min(int64(len(g.in)), g.left))
		if g.state == inLiteral {
			g.out = g.in[:n]
		}
		g.in = g.in[n:]
		if g.left -= int64(n); g.left == 0 {
			if g.state == inLiteral {
				g.state = inLine
			} else {
				g.state = dropLine
			}
		}
		return
	}
	line := g.in
	end := bytes.IndexByte(line, '\n')
	if end >= 0 {
		line = line[:end+1]
	}
	g.in = g.in[len(line):]
	line = append(g.tail, line...)
	g.tail = nil
	if end < 0 {
		keep := held(line)
		if len(line)-keep > maxAnnouncement {
			g.err = errGuard
			return
		}
		g.tail = append([]byte(nil), line[keep:]...)
		line = line[:keep]
	}
	if g.state == inLine {
		g.out = line
	}
	if end < 0 {
		return
	}
	n, plus, brace, ok := announcement(line)
	if g.state == dropLine {
		if ok && plus {
			g.state, g.left = dropLiteral, n
		} else {
			// The command is over. A client that announces another synchronizing literal has been refused already.
			g.state, g.count = inLine, 0
		}
		return
	}
	if !ok {
		g.count = 0
		return
	}
	if g.count++; g.count > maxLiterals {
		g.out, g.err = nil, errGuard
		return
	}
	if plus {
		g.out = append(append([]byte(nil), line[:brace]...), '}', '\r', '\n')
	}
	g.left = n
	g.state, g.nudged = announced, false
	g.mu.Lock()
	g.plus, g.waiting, g.asked, g.refused = plus, true, false, false
	g.mu.Unlock()
}

// held returns where in a line without an end an announcement may have begun, or its length.
func held(line []byte) int {
	open := bytes.LastIndexByte(line, '{')
	if open < 0 {
		return len(line)
	}
	switch string(bytes.TrimLeft(line[open+1:], "0123456789")) {
	case "", "+", "+}", "+} ", "+} \r", "+}\r", "}", "} ", "} \r", "}\r":
		return open
	}
	return len(line)
}

// announcement parses the end of a line: {n} or {n+}, and what else the engine takes for it: a space behind it, a line end without CR.
// brace is where "}" or "+}" is.
func announcement(line []byte) (n int64, plus bool, brace int, ok bool) {
	s := bytes.TrimSuffix(bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r")), []byte(" "))
	if !bytes.HasSuffix(s, []byte("}")) {
		return 0, false, 0, false
	}
	s, plus = bytes.CutSuffix(s[:len(s)-1], []byte("+"))
	digits := s[bytes.LastIndexByte(s, '{')+1:]
	if len(digits) == len(s) || len(digits) == 0 || len(bytes.Trim(digits, "0123456789")) > 0 {
		return 0, false, 0, false
	}
	n, err := strconv.ParseInt(string(digits), 10, 64)
	return n, plus, len(s), err == nil
}
