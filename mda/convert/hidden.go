package convert

import (
	"strconv"
	"strings"
)

// isHidden says that an element does not show, as its own attributes have it.
func isHidden(attrs map[string]string) bool {
	if _, ok := attrs["hidden"]; ok {
		return true
	}
	style, ok := attrs["style"]
	if !ok || len(style) > 4000 {
		return false
	}
	clipped, empty := false, false
	for decl := range strings.SplitSeq(strings.ToLower(style), ";") {
		name, value, _ := strings.Cut(decl, ":")
		value, _, _ = strings.Cut(strings.TrimSpace(value), "!")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(name) {
		case "display":
			if value == "none" {
				return true
			}
		case "visibility":
			if value == "hidden" || value == "collapse" {
				return true
			}
		case "opacity":
			if n, _, ok := length(value); ok && n == 0 {
				return true
			}
		case "font-size":
			if n, unit, ok := length(value); ok && (n == 0 || n <= 1 && (unit == "px" || unit == "pt")) {
				return true
			}
		case "text-indent", "left", "top", "margin-left", "margin-top":
			if n, unit, ok := length(value); ok && n <= -900 && unit == "px" {
				return true
			}
		case "overflow":
			clipped = clipped || value == "hidden"
		case "height", "width", "max-height", "max-width":
			if n, _, ok := length(value); ok && n == 0 {
				empty = true
			}
		}
	}
	return clipped && empty
}

// length reads a number with a unit.
func length(s string) (n float64, unit string, ok bool) {
	i := 0
	for i < len(s) && (s[i] == '.' || s[i] == '-' || s[i] == '+' || '0' <= s[i] && s[i] <= '9') {
		i++
	}
	n, err := strconv.ParseFloat(s[:i], 64)
	return n, s[i:], err == nil
}

// A region is the part of a document inside of an element that is not shown. It ends
// with that element, or where a browser would end it: its end tag may be missing.
type region struct {
	open []string // the names of elements that are open, the one that began it first
	over int      // how many are open beyond maxRegion
}

const maxRegion = 256

func (r *region) active() bool { return len(r.open) > 0 }

func (r *region) begin(name string) { r.open, r.over = append(r.open[:0], name), 0 }

// tag takes in a tag, and says whether it is of the region. One that is not has ended it.
func (r *region) tag(t token) bool {
	if !t.end {
		switch first := r.open[0]; {
		case len(r.open) == 1 && r.over == 0 && endsBefore(first, t.name),
			(first == "svg" || first == "math") && isBlock(t.name):
			r.open = r.open[:0]
			return false
		case isVoid(t.name):
		case len(r.open) < maxRegion:
			r.open = append(r.open, t.name)
		default:
			r.over++
		}
		return true
	}
	if isVoid(t.name) {
		return true
	}
	if r.over > 0 {
		r.over--
		return true
	}
	for i := len(r.open) - 1; i >= 0; i-- {
		if r.open[i] == t.name {
			r.open = r.open[:i]
			return true
		}
	}
	if !isBlock(t.name) && t.name != "body" && t.name != "html" {
		return true // the end of what never began
	}
	// The end of an element around it.
	r.open = r.open[:0]
	return false
}

// endsBefore says that an element whose end tag may be left out ends before
// another one (HTML, section 13.1.2.4).
func endsBefore(open, next string) bool {
	switch open {
	case "p":
		return isBlock(next)
	case "li", "option", "tr":
		return next == open
	case "td", "th":
		return next == "td" || next == "th" || next == "tr"
	case "dt", "dd":
		return next == "dt" || next == "dd"
	}
	return false
}

func isVoid(name string) bool {
	switch name {
	case "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr", "keygen", "frame", "bgsound", "basefont":
		return true
	}
	return false
}

func isBlock(name string) bool {
	switch name {
	case "address", "article", "aside", "blockquote", "center", "details", "dialog", "dd", "dir", "div", "dl", "dt", "fieldset", "figcaption",
		"figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "li", "main", "menu", "nav", "ol", "p",
		"pre", "listing", "search", "section", "summary", "table", "caption", "tbody", "thead", "tfoot", "tr", "td", "th", "ul", "option", "optgroup",
		"legend", "xmp", "plaintext":
		return true
	}
	return false
}
