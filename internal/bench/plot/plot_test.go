package main

import (
	"encoding/xml"
	"io"
	"math"
	"strings"
	"testing"
)

const data = `# a comment
ours	1	100
ours	10	1000
ours	10	800
ours	10	1200
theirs & others	1	50

theirs & others	100	60
`

func TestDraw(t *testing.T) {
	for _, args := range [][]string{{"-title", "A < B"}, {"-logx"}, {"-logx", "-logy"}} {
		var b strings.Builder
		if err := run(args, strings.NewReader(data), &b); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		// It is well-formed, with a mark for each x of each series, and all of it is inside of the picture.
		marks := 0
		d := xml.NewDecoder(strings.NewReader(b.String()))
		for {
			tok, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%v: %v\n%s", args, err, b.String())
			}
			el, ok := tok.(xml.StartElement)
			if !ok || el.Name.Local != "circle" {
				continue
			}
			marks++
			for _, a := range el.Attr {
				v := 0.0
				switch a.Name.Local {
				case "cx", "cy":
					v, err = number(a.Value, false)
				}
				if err != nil || v < 0 || v > width {
					t.Errorf("%v: %s=%q is outside", args, a.Name.Local, a.Value)
				}
			}
		}
		if marks != 4 {
			t.Errorf("%v: %d marks, want 4", args, marks)
		}
		if !strings.Contains(b.String(), "theirs &amp; others") {
			t.Errorf("%v: a series is not named", args)
		}
	}
}

func TestMedian(t *testing.T) {
	var c chart
	if err := c.read(strings.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	p := c.lines[0].points()
	if len(p) != 2 || p[1] != (point{10, 800, 1000, 1200}) {
		t.Errorf("points %v, want the median of three runs at 10", p)
	}
}

func TestAxis(t *testing.T) {
	for _, c := range []struct {
		a     axis
		ticks int
		min   float64
		max   float64
	}{
		{axis{min: 3, max: 97}, 6, 0, 100},
		{axis{min: 0, max: 7300}, 5, 0, 8000},
		{axis{min: 0, max: 0}, 6, 0, 1},
		{axis{min: 1, max: 200, log: true}, 8, 1, 200},
		{axis{min: 1000, max: 1e6, log: true}, 10, 1000, 1e6},
	} {
		got := c.a.round()
		if len(got) != c.ticks || math.Abs(c.a.min-c.min) > 1e-6 || math.Abs(c.a.max-c.max) > 1e-6*c.max {
			t.Errorf("%d ticks %v from %v to %v, want %d from %v to %v", len(got), got, c.a.min, c.a.max, c.ticks, c.min, c.max)
		}
	}
}

func TestBadData(t *testing.T) {
	for _, in := range []string{"", "a\t1\n", "a\tx\t1\n", "a\t1\tNaN\n", "a\t1\tInf\n"} {
		if err := run(nil, strings.NewReader(in), io.Discard); err == nil {
			t.Errorf("%q was drawn", in)
		}
	}
	if err := run([]string{"-logx"}, strings.NewReader("a\t0\t1\n"), io.Discard); err == nil {
		t.Error("0 was drawn on a logarithmic axis")
	}
}
