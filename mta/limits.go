package mta

import "context"

// enter takes a place at the site of the hosts. An error is what the recipients get in place of a delivery now: a
// *mailspine.NotNow. leave gives the place back.
func (t *transfer) enter(ctx context.Context, hosts []host) (leave func(), err error) {
	return func() {}, nil
}
