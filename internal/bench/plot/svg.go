package main

import (
	"fmt"
	"html"
	"io"
	"strconv"
)

// The picture, in pixels.
const (
	width, height           = 720, 420
	left, right, top, below = 80, 170, 50, 60
)

// colours can be told apart by most people who cannot tell all colours apart.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"} // never written

// draw writes the picture. Errors of w show when it is flushed.
func (c *chart) draw(w io.Writer) {
	xs, ys := c.x.round(), c.y.round()
	px := func(v float64) float64 { return left + c.x.place(v)*(width-left-right) }
	py := func(v float64) float64 { return height - below - c.y.place(v)*(height-top-below) }
	text := func(x, y float64, anchor, extra, s string) {
		fmt.Fprintf(w, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>%s</text>\n", x, y, anchor, extra, html.EscapeString(s))
	}
	line := func(x1, y1, x2, y2 float64, colour string) {
		fmt.Fprintf(w, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x1, y1, x2, y2, colour)
	}
	fmt.Fprintf(w, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n", width, height, width, height)
	fmt.Fprintf(w, "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", width, height)
	text(left, top/2+5, "start", ` font-size="16"`, c.title)
	for _, v := range ys {
		line(left, py(v), width-right, py(v), "#dddddd")
		text(left-8, py(v)+4, "end", "", label(v))
	}
	for _, v := range xs {
		line(px(v), height-below, px(v), height-below+5, "#444444")
		text(px(v), height-below+20, "middle", "", label(v))
	}
	line(left, height-below, width-right, height-below, "#444444")
	line(left, top, left, height-below, "#444444")
	text((left+width-right)/2, height-15, "middle", "", c.x.label)
	middle := (top + height - below) / 2
	text(20, float64(middle), "middle", fmt.Sprintf(` transform="rotate(-90 20 %d)"`, middle), c.y.label)
	for i, l := range c.lines {
		colour := colours[i%len(colours)]
		path := ""
		points := l.points()
		for j, p := range points {
			op := "L"
			if j == 0 {
				op = "M"
			}
			path += fmt.Sprintf("%s%.1f %.1f", op, px(p.x), py(p.median))
		}
		fmt.Fprintf(w, "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", path, colour)
		for _, p := range points {
			if p.low < p.high {
				line(px(p.x), py(p.low), px(p.x), py(p.high), colour)
			}
			fmt.Fprintf(w, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", px(p.x), py(p.median), colour)
		}
		y := float64(top + 10 + 20*i)
		line(width-right+12, y-4, width-right+32, y-4, colour)
		text(width-right+38, y, "start", "", l.name)
	}
	fmt.Fprintln(w, "</svg>")
}

// label writes a number as people do: 1500, 200 k, 1 M.
func label(v float64) string {
	unit := ""
	switch {
	case v >= 1e6:
		v, unit = v/1e6, " M"
	case v >= 1e4:
		v, unit = v/1e3, " k"
	}
	return strconv.FormatFloat(v, 'g', 6, 64) + unit
}
