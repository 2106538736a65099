package dial_test

import (
	"errors"
	"fmt"

	"github.com/mailspine/mailspine/internal/dial"
)

// A report is to be sent to a URI that a stranger published.
func ExampleGuard_HTTPClient() {
	var g dial.Guard
	client := g.HTTPClient(&dial.HTTPOptions{MaxResponse: 64 << 10})
	for _, uri := range []string{"https://169.254.169.254/latest/meta-data/", "http://reports.example.org/"} {
		_, err := client.Get(uri)
		fmt.Println(errors.Is(err, dial.ErrForbidden), errors.Is(err, dial.ErrNotHTTPS))
	}
	// Output:
	// true false
	// false true
}
