// Package egress decides which of our addresses mail is sent from, and how much
// of it: sources, pools, and the warm-up of sources and sending domains.
//
// A receiver trusts an address, and a domain, that it has seen send wanted mail for
// a while. A new one that sends a hundred thousand messages on its first day is taken for a
// thief's. So the volume of a new [Source] or [Domain] has a cap that grows from one sending day to
// the next, its [Schedule].
//
// A [Selector] is an mta.Egress, which an mta.Relay asks before it connects:
//
//	state, err := egress.Open("/var/lib/mail/egress", nil)
//	...
//	a1 := egress.Source{Name: "a1", Addr: netip.MustParseAddr("192.0.2.1"), Hostname: "a1.out.example"}
//	a2 := egress.Source{Name: "a2", Addr: netip.MustParseAddr("192.0.2.2"), Hostname: "a2.out.example", WarmUp: egress.Geometric{}}
//	sel := &egress.Selector{
//		Pools: []egress.Pool{
//			{Name: "shared", Members: []egress.Member{{Source: a1, Weight: 3}, {Source: a2}}},
//			{Name: "vip", Members: []egress.Member{{Source: b1}}, Tenants: []string{"acme"}},
//		},
//		Domains: []egress.Domain{{Name: "news.example", WarmUp: egress.Ladder{100, 200, 400, 1000}}},
//		State:   state,
//	}
//	relay := &mta.Relay{Egress: sel, ...}
//	...
//	sel.Close()
//	state.Close()
//
// # Selection
//
// The tenant of the envelope chooses the pool: the one that lists it, or else the first
// that lists nobody. An envelope may name a pool, if its tenant may use it; a pool that is not the
// tenant's is an error, and nobody's mail goes out from another's address. Of the pool, the source
// that has sent least today in relation to its weight, of those with room under their cap, takes the
// recipients of the delivery, as many as it has room for; what is over goes to the next. Among equals the
// first of the pool is chosen.
//
// Nothing of this is left to chance: the same counts give the same choice, so that [Selector.Explain] can
// say which source comes next and why, and a source that stood still, or was full, gets its
// share of the day afterwards. The price is that a source which is new in a pool takes all of the mail until it has caught
// up with the others, within its cap: a new source has one.
//
// A source whose last delivery no server heard of lets the others of its pool go first for a minute: its address may be gone, and a
// source that cannot send would otherwise stay the one that has sent least, and stop the pool.
//
// # Caps
//
// Caps are in copies: one for each recipient that a server heard of in a RCPT command, whatever it
// answered; a recipient that is tried again counts again. Copies are reserved before they are sent, and given back if they were not.
// A copy counts for the UTC day on which it was reserved, also when it goes out a little after midnight.
//
// What no source, or the sending domain, has room for waits: those recipients get a
// mailspine.NotNow with the rule, the reason in words ("warm-up: source a1 sent 20 of 20 on its day
// 3") and the next midnight in UTC; or the next minute, while others are under way that may give something back. A
// queue counts no attempt for it.
//
// A sending day is a day on which something was sent. Days without mail raise no
// cap. Nor does a clock that goes back: the day stays, and its cap is not given twice. If a clock was ahead and comes back, the
// source waits for the day that it had reached.
//
// # What survives
//
// A grant is durable before it is used, so that no crash gives a cap twice. To spare the disk, each write reserves a block ahead
// (see Selector.Block): a crash loses what is left of it, never more, and a clean Close nothing. A State that fails grants
// nothing. Counting is done in one process; a State is locked.
//
// # Not there
//
// Caps for each receiving provider, by outcomes or by the hour, overflow pools, pools by stream, pausing a
// source, several processes under one cap, and a way to set counts by hand.
package egress
