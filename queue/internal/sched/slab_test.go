package sched

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestSlab(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var s, mirror Slab[int]
		want := map[Slot]int{}
		put := func(rt *rapid.T) {
			n := rapid.IntRange(1, 2000).Draw(rt, "n")
			for range n {
				i := s.Alloc()
				if _, ok := want[i]; ok || i == 0 {
					rt.Fatalf("Alloc returned %d, which is taken", i)
				}
				if *s.At(i) != 0 {
					rt.Fatalf("the value of %d is not zero", i)
				}
				*s.At(i), *mirror.Claim(i), want[i] = len(want)+1, -1, len(want)+1
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"put": put,
			"free": func(rt *rapid.T) {
				from := rapid.IntRange(0, 5000).Draw(rt, "from")
				for i := from; i < from+rapid.IntRange(1, 3000).Draw(rt, "n"); i++ {
					if _, ok := want[Slot(i)]; ok {
						delete(want, Slot(i))
						s.Free(Slot(i))
						mirror.Free(Slot(i))
					}
				}
			},
			"": func(rt *rapid.T) {
				n := 0
				for i, v := range s.All() {
					if w, ok := want[i]; !ok || w != *v {
						rt.Fatalf("place %d has %d, want %d, %v", i, *v, w, ok)
					}
					n++
				}
				if n != len(want) || s.Len() != n || mirror.Len() != n {
					rt.Fatalf("%d values, Len %d and %d, want %d", n, s.Len(), mirror.Len(), len(want))
				}
				for i := range Slot(6000) {
					if _, ok := want[i]; s.Has(i) != ok {
						rt.Fatalf("Has(%d) is %v", i, !ok)
					}
				}
			},
		})
	})
}

// What was freed is used again before anything grows, and chunks that are empty are given back.
func TestSlabReuse(t *testing.T) {
	var s Slab[[16]byte]
	const n = 20 * chunkSize
	for range n {
		s.Alloc()
	}
	chunks := len(s.chunks)
	for i := range Slot(n) {
		if i > 0 && i%3 == 0 {
			s.Free(i)
		}
	}
	for range (n - 1) / 3 {
		s.Alloc()
	}
	if len(s.chunks) != chunks {
		t.Errorf("%d chunks after places were used again, %d before", len(s.chunks), chunks)
	}
	for i := range Slot(n) {
		if i > 100 {
			s.Free(i)
		}
	}
	held := 0
	for _, c := range s.chunks {
		if c != nil {
			held++
		}
	}
	if held > 2 {
		t.Errorf("%d chunks are kept for %d values", held, s.Len())
	}
}

func TestVector(t *testing.T) {
	var v vector[int]
	for i := range 5 * chunkSize {
		v.push(i)
	}
	for i := range v.n {
		if *v.at(i) != i {
			t.Fatalf("element %d is %d", i, *v.at(i))
		}
	}
	for v.n > 10 {
		v.pop()
	}
	if len(v.chunks) > 2 || *v.at(9) != 9 {
		t.Errorf("%d chunks for %d elements", len(v.chunks), v.n)
	}
	v.push(1)
	for v.n > 0 {
		v.pop()
	}
	if len(v.chunks) > 1 {
		t.Errorf("%d chunks for nothing", len(v.chunks))
	}
}

func TestIndex(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		hashes := map[Slot]uint64{}
		x := Index{Hash: func(i Slot) uint64 { return hashes[i] }}
		byHash := map[uint64][]Slot{}
		var slots Slab[struct{}]
		rt.Repeat(map[string]func(*rapid.T){
			"add": func(rt *rapid.T) {
				for range rapid.IntRange(1, 300).Draw(rt, "n") {
					i := slots.Alloc()
					h := rapid.Uint64Range(0, 500).Draw(rt, "hash") * 0x9e3779b97f4a7c15
					hashes[i] = h
					byHash[h] = append(byHash[h], i)
					x.Add(i)
				}
			},
			"remove": func(rt *rapid.T) {
				n := rapid.IntRange(1, 300).Draw(rt, "n")
				for i, h := range hashes {
					if n--; n < 0 {
						break
					}
					x.Remove(i)
					slots.Free(i)
					delete(hashes, i)
					byHash[h] = slices.DeleteFunc(byHash[h], func(j Slot) bool { return j == i })
				}
			},
			"": func(rt *rapid.T) {
				if x.Len() != len(hashes) {
					rt.Fatalf("Len is %d, want %d", x.Len(), len(hashes))
				}
				for h := range uint64(501) {
					h *= 0x9e3779b97f4a7c15
					got := slices.Sorted(x.Find(h))
					slices.Sort(byHash[h])
					if !slices.Equal(got, byHash[h]) {
						rt.Fatalf("Find(%x) is %v, want %v", h, got, byHash[h])
					}
				}
				if n := x.heads.n; n > 1 && (x.Len() < n/2-1 || x.Len() > n) {
					rt.Fatalf("%d buckets for %d", n, x.Len())
				}
			},
		})
	})
}

func TestNames(t *testing.T) {
	var n Names
	a, b := n.Use("a"), n.Use("b")
	if n.Use("a") != a || a == b || n.Text(a) != "a" || n.Text(b) != "b" || n.Len() != 2 {
		t.Fatal("a string is not kept once")
	}
	n.Drop(a)
	if n.Text(a) != "a" {
		t.Error("a string went before its last user")
	}
	n.Drop(a)
	if n.Len() != 1 || n.Use("b") != b {
		t.Error("a string did not go with its last user")
	}
}
