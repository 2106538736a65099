package mta_test

import (
	"context"
	"fmt"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/mta"
)

// Mail for one domain goes to a host in the private network, and all other mail to that of a provider: a queue
// in front of the Mux keeps the recipients together that travel together.
func ExampleSmarthost() {
	provider := &mta.Smarthost{Address: "192.0.2.25:25"}
	if err := provider.Validate(); err != nil {
		fmt.Println(err)
		return
	}
	mux := &mta.Mux{
		Routes:  map[string]mailspine.Deliverer{"branch.example": &mta.Smarthost{Address: "10.0.0.7:25"}},
		Default: provider,
	}
	env := &mailspine.Envelope{}
	for _, s := range []string{"ann@branch.example", "bob@one.example", "cid@two.example"} {
		a, _ := mailspine.ParseAddress(s)
		route, err := mux.Route(context.Background(), env, mailspine.Recipient{Address: a})
		fmt.Println(a, "goes to", route, err)
	}
	fmt.Println((&mta.Smarthost{Address: "mail.isp.example"}).Validate())
	// Output:
	// ann@branch.example goes to 10.0.0.7:25 <nil>
	// bob@one.example goes to 192.0.2.25:25 <nil>
	// cid@two.example goes to 192.0.2.25:25 <nil>
	// mta: Smarthost.Address "mail.isp.example": not host:port
}
