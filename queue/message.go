package queue

import (
	"fmt"

	"github.com/mailspine/mailspine"
)

// Validate reports what makes a message one that no [Store] takes: Put begins
// with it, for the messages that a Settlement emits too. The error is
// [ErrBadMessage] and names what is wrong.
func (m Message) Validate(msg mailspine.Content) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrBadMessage}, args...)...)
	}
	if m.Envelope == nil || msg == nil {
		return bad("no envelope, or no content")
	}
	if err := m.Envelope.Validate(); err != nil {
		return bad("%w", err)
	}
	if m.Envelope.ID == "" {
		return bad("Envelope.ID is empty")
	}
	if msg.Size() < 0 {
		return bad("the content has a negative size")
	}
	if m.Weight < 0 || m.Weight > MaxWeight {
		return bad("Weight is %d, not from 0 to %d", m.Weight, MaxWeight)
	}
	seen := make([]bool, len(m.Envelope.Recipients))
	n := 0
	for _, it := range m.Items {
		if len(it.Recipients) == 0 {
			return bad("the item for %q has no recipients", it.Route)
		}
		for _, i := range it.Recipients {
			if i < 0 || i >= len(seen) || seen[i] {
				return bad("recipient %d is in more than one item, or does not exist", i)
			}
			seen[i] = true
			n++
		}
	}
	if n != len(seen) {
		return bad("%d of %d recipients are in no item", len(seen)-n, len(seen))
	}
	return nil
}
