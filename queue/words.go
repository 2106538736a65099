package queue

import (
	"strings"

	"github.com/mailspine/mailspine"
)

// textWidth is where the text of a notification is wrapped.
const textWidth = 72

// wrap writes a text for people, each line indented. Words that are longer than a line are kept whole.
func wrap(b *strings.Builder, indent, text string) {
	n := 0
	for _, word := range strings.Fields(text) {
		switch {
		case n == 0:
			b.WriteString(indent)
			n = len(indent)
		case n+1+len(word) > textWidth:
			b.WriteString("\n" + indent)
			n = len(indent)
		default:
			b.WriteByte(' ')
			n++
		}
		b.WriteString(word)
		n += len(word)
	}
	if n > 0 {
		b.WriteByte('\n')
	}
}

// why says in words what an enhanced code means (RFC 3463 and the codes that were registered
// since), and, if it is for good, what the sender of a message can do about it.
func why(c mailspine.EnhancedCode) string {
	const (
		spelling = "Check how it is written, or ask the recipient in another way."
		otherWay = "Ask the recipient in another way."
		room     = "Send the message again when there is room."
		smaller  = "Send a smaller one."
		admin    = "Ask those who run your own mail system."
		reworded = "Sending it again as it is will not help."
	)
	type words struct{ fact, advice string }
	say := func(w words) string {
		if c[0] != 5 {
			return w.fact + "."
		}
		return strings.TrimSpace(w.fact + ". " + w.advice)
	}
	refused := "The receiving system refused the message"
	if c[0] != 5 {
		refused += " for now"
	}
	switch [2]int{c[1], c[2]} {
	case [2]int{1, 1}, [2]int{1, 3}, [2]int{1, 4}:
		return say(words{"There is no such address at its domain", spelling})
	case [2]int{1, 2}:
		return say(words{"The domain of the address does not exist, or takes no mail", spelling})
	case [2]int{1, 6}:
		return say(words{"The mailbox has moved, and it is not known where to", otherWay})
	case [2]int{1, 10}:
		return say(words{"The domain of the address says that it takes no mail", spelling})
	case [2]int{1, 7}, [2]int{1, 8}:
		return say(words{"Your own address was refused", admin})
	case [2]int{2, 1}:
		return say(words{"The mailbox takes no mail at present", otherWay})
	case [2]int{2, 2}:
		return say(words{"The mailbox is full", room})
	case [2]int{2, 3}:
		return say(words{"The message is larger than the mailbox takes", smaller})
	case [2]int{3, 1}:
		return say(words{"The receiving system is full", room})
	case [2]int{3, 3}, [2]int{6, 3}:
		return say(words{"The receiving system cannot carry what this message needs", admin})
	case [2]int{3, 4}:
		return say(words{"The message is larger than the receiving system takes", smaller})
	case [2]int{4, 3}, [2]int{4, 4}:
		return say(words{"It could not be found out where mail for the address goes", spelling})
	case [2]int{4, 6}:
		return say(words{"The message went round in a circle", admin})
	case [2]int{4, 7}:
		return say(words{"It was not delivered in the time that there was for that", "Send it again, if it still matters."})
	case [2]int{5, 3}:
		return say(words{"The message has more recipients than the receiving system takes at once", "Send it to fewer."})
	case [2]int{6, 7}, [2]int{6, 8}, [2]int{6, 9}, [2]int{6, 10}:
		return say(words{"The receiving system does not take addresses or headers with letters like these", "Use addresses in plain ASCII, if there are such."})
	case [2]int{7, 10}, [2]int{7, 30}:
		return say(words{"The message must travel encrypted, and the receiving system does not offer that", admin})
	case [2]int{7, 20}, [2]int{7, 21}, [2]int{7, 22}, [2]int{7, 23}, [2]int{7, 24}, [2]int{7, 25}, [2]int{7, 26}, [2]int{7, 27}, [2]int{7, 29}:
		return say(words{"The receiving system could not verify that the message is from you", admin})
	}
	switch c[1] {
	case 1:
		return say(words{"The address was refused", spelling})
	case 2:
		return say(words{"The mailbox does not take the message", otherWay})
	case 3:
		return say(words{"The receiving system cannot take the message at present", ""})
	case 4:
		return say(words{"The receiving system could not be reached", ""})
	case 5:
		return say(words{"The two mail systems did not understand each other", admin})
	case 6:
		return say(words{"The receiving system cannot take what is in the message", reworded})
	case 7:
		return say(words{refused, "It has a rule against it, and its answer may say which. " + reworded})
	}
	return say(words{refused, ""})
}
