package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxRoutes bounds the lines of a file of routes.
const maxRoutes = 1_000_000

// readRoutes reads a file of routes: host:port by domain, or by a dot and a domain.
func readRoutes(file string) (map[string]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	routes, err := parseRoutes(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return routes, nil
}

// parseRoutes reads routes. Its errors have the number of the line.
func parseRoutes(r io.Reader) (map[string]string, error) {
	routes := map[string]string{}
	s := bufio.NewScanner(r) // a line has at most 64 KiB
	n := 0
	for s.Scan() {
		if n++; n > maxRoutes {
			return nil, fmt.Errorf("more than %d lines", maxRoutes)
		}
		line, _, _ := strings.Cut(s.Text(), "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 2 {
			return nil, fmt.Errorf("line %d: not of the form: domain host:port", n)
		}
		parent, sub := strings.CutPrefix(f[0], ".")
		domain, err := domainName(parent)
		if err == nil {
			err = hostPort(f[1], false)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if sub {
			domain = "." + domain
		}
		if routes[domain] != "" {
			return nil, fmt.Errorf("line %d: %s is there twice", n, domain)
		}
		routes[domain] = f[1]
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", n+1, err)
	}
	return routes, nil
}
