package authres_test

import (
	"fmt"
	"strings"

	"github.com/mailspine/mailspine/auth/authres"
)

func ExampleHeader_Field() {
	h := authres.Header{ID: "mx.example.net", Results: []authres.Result{
		{Method: "spf", Value: "pass", Properties: []authres.Property{{Type: "smtp", Name: "mailfrom", Value: "joe@example.org"}}},
		// A stranger's text stays inside of its quotes.
		{Method: "dkim", Value: "fail", Reason: `bad"; dmarc=pass`},
	}}
	fmt.Print(strings.ReplaceAll(string(h.Field()), "\r\n", "\n"))
	// Output:
	// Authentication-Results: mx.example.net;
	// 	spf=pass
	// 	 smtp.mailfrom=joe@example.org;
	// 	dkim=fail
	// 	 reason="bad\"; dmarc=pass"
}

func ExampleParse() {
	h, err := authres.Parse(`mx.example.net (our border); dkim=fail (a; dmarc=pass) header.d=example.org`)
	if err != nil {
		panic(err)
	}
	for _, r := range h.Results {
		fmt.Println(h.ID, r.Method, r.Value, r.Get("header", "d"))
	}
	fmt.Println(authres.SameID(h.ID, "MX.example.net."))
	// Output:
	// mx.example.net dkim fail example.org
	// true
}
