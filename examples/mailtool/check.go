package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/auth/bimi"
	"github.com/mailspine/mailspine/auth/dmarc"
	"github.com/mailspine/mailspine/auth/spf"
)

// A verdict is what a comparison comes to.
type verdict struct{ status, problem string }

func good() verdict                       { return verdict{status: "ok"} }
func bad(format string, a ...any) verdict { return verdict{"differs", fmt.Sprintf(format, a...)} }

// unsure is the verdict when a lookup failed: nothing is known then.
func unsure(format string, a ...any) verdict { return verdict{"error", fmt.Sprintf(format, a...)} }

// A compare looks at what is published.
type compare func(ctx context.Context, r mailspine.Resolver, a mailspine.Answer) verdict

func typeOf(name string) mailspine.Type {
	switch name {
	case "A":
		return mailspine.TypeA
	case "AAAA":
		return mailspine.TypeAAAA
	case "MX":
		return mailspine.TypeMX
	case "PTR":
		return mailspine.TypePTR
	case "SRV":
		return mailspine.TypeSRV
	case "TLSA":
		return mailspine.TypeTLSA
	}
	return mailspine.TypeTXT
}

// lookupTime bounds the look at one record.
const lookupTime = 30 * time.Second

// check looks up each record and fills in what it finds. It reports whether all
// that is not optional is well.
func check(ctx context.Context, r mailspine.Resolver, recs []*record) bool {
	for _, rec := range recs {
		rec.look(ctx, r)
	}
	return allWell(recs)
}

// allWell reports whether all that is not optional is well.
func allWell(recs []*record) bool {
	well := true
	for _, rec := range recs {
		if rec.Status != "ok" && !rec.Optional {
			well = false
		}
	}
	return well
}

func (rec *record) look(ctx context.Context, r mailspine.Resolver) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	a, err := r.Lookup(ctx, rec.Name, typeOf(rec.Type))
	if err == nil && rec.Type == "TXT" {
		a.TXT = slices.DeleteFunc(slices.Clone(a.TXT), func(s string) bool { return !rec.concerns(s) })
		if len(a.TXT) == 0 {
			err = mailspine.ErrNoData
		}
	}
	v := good()
	switch {
	case mailspine.IsNotFound(err):
		if !rec.none {
			v = verdict{"missing", rec.absent}
		}
		if rec.instead != nil {
			if w, found := rec.instead(ctx, r); w.status != "" {
				v, rec.Found = w, found
			}
		}
	case err != nil:
		v = unsure("%v", err)
	default:
		rec.Found = present(a, rec.Type)
		v = rec.compare(ctx, r, a)
	}
	rec.Status, rec.Problem = v.status, v.problem
}

// concerns reports whether a TXT record is of the kind that is looked for: a domain has others too. One
// that is meant to be of the kind and is misspelt concerns as well.
func (rec *record) concerns(txt string) bool {
	low := strings.ToLower(strings.TrimLeft(txt, " \t"))
	switch rec.kind {
	case "spf":
		return spf.IsRecord(txt)
	case "dmarc":
		_, ok := dmarc.ParseRecord(txt)
		return ok || strings.HasPrefix(low, "v=dmarc1")
	case "bimi":
		_, err := bimi.ParseRecord(txt)
		return err == nil || strings.HasPrefix(low, "v=bimi1")
	case "sts":
		return strings.HasPrefix(low, "v=stsv1")
	case "tlsrpt":
		return strings.HasPrefix(low, "v=tlsrptv1")
	}
	return true
}

// present shows an answer as Values are.
func present(a mailspine.Answer, typ string) []string {
	var out []string
	switch typ {
	case "A", "AAAA":
		for _, ip := range a.Addrs {
			out = append(out, ip.String())
		}
	case "MX":
		for _, m := range a.MX {
			out = append(out, fmt.Sprintf("%d %s.", m.Preference, strings.TrimSuffix(m.Host, ".")))
		}
	case "TXT":
		out = slices.Clone(a.TXT)
	case "PTR":
		for _, n := range a.Names {
			out = append(out, strings.TrimSuffix(n, ".")+".")
		}
	case "SRV":
		for _, s := range a.SRV {
			out = append(out, fmt.Sprintf("%d %d %d %s.", s.Priority, s.Weight, s.Port, strings.TrimSuffix(s.Target, ".")))
		}
	case "TLSA":
		for _, t := range a.TLSA {
			out = append(out, tlsaValue(t))
		}
	}
	slices.Sort(out)
	return out
}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// printCheck prints what was found, problems with what they mean.
func printCheck(w io.Writer, recs []*record) {
	count := map[string]int{}
	for _, r := range recs {
		mark := r.Status
		if r.Optional && r.Status != "ok" {
			mark = "(" + r.Status + ")"
		}
		count[r.Status]++
		fmt.Fprintf(w, "%-9s  %-5s %s\n", mark, r.Type, r.Name)
		if r.Status == "ok" {
			continue
		}
		for _, v := range r.Values {
			fmt.Fprintf(w, "%11swant   %s\n", "", v)
		}
		for _, v := range r.Found {
			fmt.Fprintf(w, "%11sfound  %s\n", "", printable(v))
		}
		fmt.Fprintf(w, "%11s%s\n", "", printable(r.Problem))
	}
	fmt.Fprintf(w, "\n%d ok, %d missing, %d different, %d could not be looked up; in parentheses: optional\n", count["ok"], count["missing"], count["differs"], count["error"])
}

// printable keeps what strangers wrote from driving the terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if drives(c) {
			return '?'
		}
		return c
	}, s)
}
