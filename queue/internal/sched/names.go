package sched

import "strings"

// Names keeps strings that many have in common once, and counts who uses them.
// The zero Names is empty.
type Names struct {
	slots map[string]Slot
	texts Slab[name]
}

type name struct {
	text string
	uses int
}

// Use returns the Slot of a string, for one more user. It keeps a copy.
func (n *Names) Use(text string) Slot {
	i, ok := n.slots[text]
	if !ok {
		text = strings.Clone(text)
		i = n.texts.Alloc()
		n.texts.At(i).text = text
		if n.slots == nil {
			n.slots = map[string]Slot{}
		}
		n.slots[text] = i
	}
	n.texts.At(i).uses++
	return i
}

// Drop ends one use of a Slot. With the last the string goes.
func (n *Names) Drop(i Slot) {
	t := n.texts.At(i)
	if t.uses--; t.uses > 0 {
		return
	}
	delete(n.slots, t.text)
	n.texts.Free(i)
}

// Text returns the string of a Slot that is in use.
func (n *Names) Text(i Slot) string { return n.texts.At(i).text }

// Len returns how many strings are kept.
func (n *Names) Len() int { return n.texts.Len() }
