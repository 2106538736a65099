package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	var c chart
	fs := flag.NewFlagSet("plot", flag.ContinueOnError)
	fs.StringVar(&c.title, "title", "", "above the picture")
	fs.StringVar(&c.x.label, "x", "x", "below the x axis")
	fs.StringVar(&c.y.label, "y", "y", "beside the y axis")
	fs.BoolVar(&c.x.log, "logx", false, "logarithmic x axis")
	fs.BoolVar(&c.y.log, "logy", false, "logarithmic y axis")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if err := c.read(in); err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	c.draw(w)
	return w.Flush()
}

// A chart is what is drawn.
type chart struct {
	title string
	x, y  axis
	lines []*curve // in the order in which they were first named
}

// A curve is one series.
type curve struct {
	name string
	runs map[float64][]float64
}

// A point is the runs at one x.
type point struct{ x, low, median, high float64 }

func (c *curve) points() []point {
	var list []point
	for x, ys := range c.runs {
		slices.Sort(ys)
		m := (ys[(len(ys)-1)/2] + ys[len(ys)/2]) / 2
		list = append(list, point{x, ys[0], m, ys[len(ys)-1]})
	}
	slices.SortFunc(list, func(a, b point) int { return int(math.Copysign(1, a.x-b.x)) })
	return list
}

// An axis maps values to places.
type axis struct {
	label    string
	log      bool
	min, max float64
}

func (a *axis) include(v float64) { a.min, a.max = min(a.min, v), max(a.max, v) }

// place returns where a value is, from 0 to 1.
func (a *axis) place(v float64) float64 {
	low, high := a.min, a.max
	if a.log {
		v, low, high = math.Log10(v), math.Log10(low), math.Log10(high)
	}
	if high <= low {
		return 0.5
	}
	return (v - low) / (high - low)
}

// round makes the ends of the axis round numbers, and returns what is marked on it.
func (a *axis) round() []float64 {
	if a.log {
		return a.roundLog()
	}
	a.min = min(0, a.min)
	if a.max <= a.min {
		a.max = a.min + 1
	}
	step := math.Pow(10, math.Floor(math.Log10((a.max-a.min)/4)))
	for _, f := range []float64{1, 2, 5, 10} {
		if (a.max-a.min)/(f*step) <= 6 {
			step *= f
			break
		}
	}
	a.max = math.Ceil(a.max/step) * step
	var ticks []float64
	for i := math.Ceil(a.min / step); i*step <= a.max; i++ {
		ticks = append(ticks, i*step)
	}
	return ticks
}

func (a *axis) roundLog() []float64 {
	first := math.Floor(math.Log10(a.min))
	var all []float64
	for d := first; math.Pow(10, d) <= a.max*10; d++ {
		for _, f := range []float64{1, 2, 5} {
			all = append(all, f*math.Pow(10, d))
		}
	}
	from := 0
	for from+1 < len(all) && all[from+1] <= a.min {
		from++
	}
	to := len(all) - 1
	for to > from+1 && all[to-1] >= a.max {
		to--
	}
	a.min, a.max = all[from], all[to]
	ticks := all[from : to+1]
	if len(ticks) > 10 { // decades only
		ticks = slices.DeleteFunc(slices.Clone(ticks), func(v float64) bool {
			d := math.Log10(v)
			return math.Abs(d-math.Round(d)) > 1e-9
		})
	}
	return ticks
}

// read reads the data.
func (c *chart) read(in io.Reader) error {
	c.x.min, c.y.min = math.Inf(1), math.Inf(1)
	c.x.max, c.y.max = math.Inf(-1), math.Inf(-1)
	byName := map[string]*curve{}
	sc := bufio.NewScanner(in)
	for n := 1; sc.Scan(); n++ {
		text := sc.Text()
		if strings.TrimSpace(text) == "" || text[0] == '#' {
			continue
		}
		f := strings.Split(text, "\t")
		if len(f) != 3 {
			return fmt.Errorf("line %d: %d fields, want 3", n, len(f))
		}
		x, err := number(f[1], c.x.log)
		if err != nil {
			return fmt.Errorf("line %d: x: %w", n, err)
		}
		y, err := number(f[2], c.y.log)
		if err != nil {
			return fmt.Errorf("line %d: y: %w", n, err)
		}
		l := byName[f[0]]
		if l == nil {
			l = &curve{name: f[0], runs: map[float64][]float64{}}
			byName[f[0]] = l
			c.lines = append(c.lines, l)
		}
		l.runs[x] = append(l.runs[x], y)
		c.x.include(x)
		c.y.include(y)
	}
	if err := sc.Err(); err != nil {
		return err
	}
	if len(c.lines) == 0 {
		return fmt.Errorf("no data")
	}
	return nil
}

func number(s string, log bool) (float64, error) {
	v, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil:
		return 0, err
	case math.IsNaN(v) || math.IsInf(v, 0):
		return 0, fmt.Errorf("%q cannot be drawn", s)
	case log && v <= 0:
		return 0, fmt.Errorf("%v on a logarithmic axis", v)
	}
	return v, nil
}
