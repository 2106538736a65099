package filequeue

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/mailspine/mailspine"
)

// Tombstones against a map.
func TestTombstones(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var s tombstones
		s.init(1000)
		want := map[mailspine.MsgID]int64{}
		now := int64(0)
		id := func(rt *rapid.T) mailspine.MsgID {
			return mailspine.MsgID(fmt.Sprint("m", rapid.IntRange(0, 20).Draw(rt, "id")))
		}
		rt.Repeat(map[string]func(*rapid.T){
			"bury": func(rt *rapid.T) {
				i, end := id(rt), now+rapid.Int64Range(-5, 30).Draw(rt, "end")
				s.bury(i, end)
				if old, ok := want[i]; !ok || end > old {
					want[i] = end
				}
			},
			"has": func(rt *rapid.T) {
				i := id(rt)
				end, ok := want[i]
				if got := s.has(i, now); got != (ok && end >= now) {
					rt.Fatalf("%s at %d: %v, want it until %d", i, now, got, end)
				}
			},
			"later": func(rt *rapid.T) { now += rapid.Int64Range(0, 10).Draw(rt, "time") },
			"all go": func(rt *rapid.T) {
				now += 100
				for range s.len()/100 + 1 {
					s.expire(now)
				}
				if s.len() != 0 || s.first != 0 || s.last != 0 || s.index.Len() != 0 {
					rt.Fatalf("%d are left", s.len())
				}
			},
		})
	})
	// Too many: the oldest go.
	var s tombstones
	s.init(100)
	for i := range 1000 {
		s.bury(mailspine.MsgID(fmt.Sprint(i)), 1000)
		s.expire(0)
	}
	if s.len() != 100 || s.has("899", 0) || !s.has("900", 0) {
		t.Errorf("%d are kept, with 899 %v and 900 %v", s.len(), s.has("899", 0), s.has("900", 0))
	}
}
