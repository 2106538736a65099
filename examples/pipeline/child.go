package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// childEnv marks a process that runs the sender's queue for the crash step.
const childEnv = "MAILSPINE_PIPELINE_CHILD"

// childMain runs an organisation's submission server, queue and relay until
// its standard input ends. It reads its settings from the first line of that,
// and tells hops and its address on standard output.
func childMain() error {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var s settings
	if err := json.Unmarshal(line, &s); err != nil {
		return err
	}
	// Standard output is not buffered: a kill takes no hop with it that was told before.
	sh := &show{w: os.Stdout, tab: true}
	o, err := newOrg(s, sh, false)
	if err != nil {
		return err
	}
	sh.step("child")
	if err := o.start(); err != nil {
		return err
	}
	fmt.Printf("ready %s\n", o.submission.Addr())
	io.Copy(io.Discard, in)
	return o.stop()
}

// A child is the process, seen from outside.
type child struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	addr  string        // of its submission server
	done  chan struct{} // its output has ended
}

// startChild starts the process and waits until it is ready. Its hops are
// told as ours.
func startChild(s settings, sh *show) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	js, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(exe), done: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), childEnv+"=1")
	c.cmd.Stderr = os.Stderr
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	ready := make(chan string, 1)
	go func() {
		defer close(c.done)
		for r := bufio.NewScanner(out); r.Scan(); {
			if addr, ok := strings.CutPrefix(r.Text(), "ready "); ok {
				ready <- addr
			} else if where, what, ok := strings.Cut(r.Text(), "\t"); ok {
				sh.hop(where, "%s", what)
			}
		}
	}()
	if _, err := c.stdin.Write(append(js, '\n')); err != nil {
		return nil, errors.Join(err, c.kill())
	}
	select {
	case c.addr = <-ready:
		return c, nil
	case <-c.done:
		return nil, fmt.Errorf("the child ended before it was ready: %w", c.cmd.Wait())
	case <-time.After(10 * time.Second):
		return nil, errors.Join(errors.New("the child is not ready after 10 s"), c.kill())
	}
}

// kill ends the process without any warning (SIGKILL, where there is such).
func (c *child) kill() error {
	err := c.cmd.Process.Kill()
	<-c.done
	c.cmd.Wait() // tells that it was killed, which we know
	return err
}

// stop lets the process end by itself.
func (c *child) stop() error {
	c.stdin.Close()
	select {
	case <-c.done:
		return c.cmd.Wait()
	case <-time.After(10 * time.Second):
		return errors.Join(errors.New("the child did not end within 10 s"), c.kill())
	}
}
