package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// Where mail for a domain would go, by its zone file.
func Example_route() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "example.org.zone")
	if err := os.WriteFile(file, []byte(`
@    IN MX 10 mail
@    IN MX 20 backup
mail   IN A 8.8.8.25
backup IN A 192.168.1.25
`), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	code := run(context.Background(), []string{"route", "-zone", file, "example.org"}, os.Stdout, os.Stderr)
	fmt.Println("exit code", code)
	// Output:
	// example.org: found by mx, site example.org~2a0dc1e0a93aee9b
	//      10 mail.example.org
	//         TLS opportunistic (no DANE: the mail exchangers are not secured by DNSSEC)
	//         1.    8.8.8.25:25
	//      20 backup.example.org
	//         TLS opportunistic (no DANE: the mail exchangers are not secured by DNSSEC)
	//         never 192.168.1.25:25
	//               192.168.1.25 is not allowed: 192.168.0.0/16, private use (RFC 1918)
	//   site: 5 deliveries at a time; now 0, and 0 waiting, over 0 connections
	//   at most 6 addresses are tried in one delivery
	// exit code 0
}
