package main

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// A protocol is a server of one of the packages. Its doors are the plain one, where TLS begins with a command, and
// the one with TLS from the start.
type protocol interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
}

// A door is a listener and who serves it.
type door struct {
	name     string
	listener net.Listener
	serve    func(net.Listener) error
	behind   protocol
}

// listen takes the ports of all services that are on, in the order of services.
func (s *server) listen() error {
	for _, svc := range services() {
		addr, on := s.o.listen[svc.name]
		if !on {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("-%s: %w", svc.name, err)
		}
		s.doors = append(s.doors, &door{name: svc.name, listener: l})
	}
	return nil
}

// An endpoint is what can be behind a door.
type endpoint struct {
	behind protocol
	serve  func(net.Listener) error
}

// connect puts what is behind the doors there.
func (s *server) connect(endpoints map[string]endpoint) {
	for _, d := range s.doors {
		e := endpoints[d.name]
		d.behind, d.serve = e.behind, e.serve
	}
}

// shut closes the doors, and waits for those who are inside, until ctx ends.
func (s *server) shut(ctx context.Context) {
	var wg sync.WaitGroup
	done := map[protocol]bool{}
	for _, d := range s.doors {
		if done[d.behind] {
			continue
		}
		done[d.behind] = true
		wg.Go(func() {
			// What is cut off here was not accepted.
			if err := d.behind.Shutdown(ctx); err != nil {
				s.log.Warn("connections were cut off", "service", d.name, "err", err)
			}
		})
	}
	wg.Wait()
}
