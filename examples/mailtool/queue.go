package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/mailspine/mailspine"
	"github.com/mailspine/mailspine/queue"
)

// A queueCommand is one part of mailtool queue.
type queueCommand struct {
	name, args, what string
	filters          bool // takes the flags that select items
	changes          bool // needs a filter or -all, and has -n
	flags            func(t *queueTool, fs *flag.FlagSet)
	check            func(t *queueTool) error // of the flags, before anything is opened
	run              func(ctx context.Context, t *queueTool) int
}

func queueCommands() []queueCommand {
	return []queueCommand{
		{name: "list", args: "[ID]", what: "the items that wait, those with the oldest message first", filters: true, run: list},
		{name: "show", args: "ID", what: "a message: its envelope, what became of each recipient, its header", flags: showFlags, check: showCheck, run: show},
		{name: "hold", args: "[ID]", what: "keep items from being delivered", filters: true, changes: true, flags: holdFlags, run: change(queue.OpHold)},
		{name: "release", args: "[ID]", what: "make items that are held due now", filters: true, changes: true, run: change(queue.OpRelease)},
		{name: "flush", args: "[ID]", what: "make items that wait due now", filters: true, changes: true, run: change(queue.OpFlush)},
		{name: "delete", args: "[ID]", what: "remove items; nobody is told", filters: true, changes: true, run: change(queue.OpDelete)},
		{name: "bounce", args: "[ID]", what: "give items up, and tell their senders", filters: true, changes: true, flags: bounceFlags, check: bounceCheck, run: bounce},
		{name: "reroute", args: "[ID]", what: "give items another route", filters: true, changes: true, flags: rerouteFlags, check: rerouteCheck, run: change(queue.OpReroute)},
		{name: "stats", what: "how many items there are, by route and by tenant", flags: statsFlags, check: statsCheck, run: showStats},
		{name: "doctor", what: "whether a spool is whole, and its repair", flags: doctorFlags, check: doctorCheck, run: examine},
	}
}

// A queueTool is one run of mailtool queue.
type queueTool struct {
	name           string // of the command
	stdout, stderr io.Writer

	spool, control string
	json           bool
	id             string // that was given without a flag
	filter         queue.Filter
	all, dry       bool
	older, younger age

	body, raw bool           // show
	reason    string         // hold
	status    bounceStatus   // bounce
	hostname  string         // bounce
	to        string         // reroute
	anew      bool           // reroute
	top       int            // stats
	repair    bool           // doctor
	given     map[string]int // the flags that were given
}

func queueMain(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		for _, c := range queueCommands() {
			if c.name == args[0] {
				t := &queueTool{name: c.name, stdout: stdout, stderr: stderr, given: map[string]int{}}
				return t.main(ctx, c, args[1:])
			}
		}
		switch args[0] {
		case "help", "-h", "-help", "--help":
			queueUsage(stdout)
			return exitOK
		}
		fmt.Fprintf(stderr, "mailtool queue: there is no command %q\n", args[0])
	}
	queueUsage(stderr)
	return exitUsage
}

func queueUsage(w io.Writer) {
	fmt.Fprintln(w, "usage: mailtool queue COMMAND -spool DIR | -control SOCKET [flags]; mailtool queue COMMAND -h lists its flags")
	for _, c := range queueCommands() {
		fmt.Fprintf(w, "  %-8s %s\n", c.name, c.what)
	}
}

func (t *queueTool) main(ctx context.Context, c queueCommand, args []string) int {
	if code := t.parse(c, args); code >= 0 {
		return code
	}
	return c.run(ctx, t)
}

// wrong is wrong usage.
func (t *queueTool) wrong(format string, args ...any) int {
	fmt.Fprintf(t.stderr, "mailtool queue %s: %s\n", t.name, printable(fmt.Sprintf(format, args...)))
	return exitUsage
}

// failed is everything else that goes wrong.
func (t *queueTool) failed(err error) int {
	fmt.Fprintf(t.stderr, "mailtool queue %s: %s\n", t.name, printable(err.Error()))
	return exitProblem
}

// parse reads the arguments. It returns an exit code, or -1: go on.
func (t *queueTool) parse(c queueCommand, args []string) int {
	fs := flag.NewFlagSet("mailtool queue "+c.name, flag.ContinueOnError)
	fs.SetOutput(t.stderr)
	fs.Usage = func() {
		fmt.Fprintf(t.stderr, "usage: %s\n%s: %s\n", strings.TrimSpace("mailtool queue "+c.name+" [flags] "+c.args), c.name, c.what)
		fs.PrintDefaults()
	}
	fs.StringVar(&t.spool, "spool", "", "`directory` of the queue; one that is running is asked through its control socket")
	fs.StringVar(&t.control, "control", "", "control `socket`; default: control in the directory of -spool")
	fs.BoolVar(&t.json, "json", false, "print JSON")
	if c.filters {
		t.filterFlags(fs)
	}
	if c.changes {
		fs.BoolVar(&t.all, "all", false, "all items, when no filter is given")
		fs.BoolVar(&t.dry, "n", false, "change nothing, and say what would be changed")
	}
	if c.flags != nil {
		c.flags(t, fs)
	}
	// The ID may come before the flags, between them and after them.
	for rest := args; ; {
		if err := fs.Parse(rest); errors.Is(err, flag.ErrHelp) {
			return exitOK
		} else if err != nil {
			return exitUsage
		}
		if rest = fs.Args(); len(rest) == 0 {
			break
		}
		if c.args == "" {
			return t.wrong("there is nothing to do with %q", rest[0])
		}
		if t.id != "" {
			return t.wrong("more than one ID: %s and %s; -h lists the flags", t.id, rest[0])
		}
		t.id, rest = rest[0], rest[1:]
	}
	fs.Visit(func(f *flag.Flag) { t.given[f.Name]++ })
	if t.spool == "" && t.control == "" {
		return t.wrong("-spool or -control is missing")
	}
	if t.id != "" {
		if err := mailspine.MsgID(t.id).Validate(); err != nil {
			return t.wrong("%q is no message ID: %v", t.id, err)
		}
	}
	if c.filters {
		if err := t.completeFilter(); err != nil {
			return t.wrong("%v", err)
		}
	}
	if c.changes {
		switch none := t.filter == (queue.Filter{}); {
		case none && !t.all:
			return t.wrong("without a filter nothing is selected; -all selects everything, -h lists the filters")
		case !none && t.all:
			return t.wrong("-all and a filter exclude each other")
		}
	}
	if c.check != nil {
		if err := c.check(t); err != nil {
			return t.wrong("%v", err)
		}
	}
	return -1
}

// filterFlags are those that select items. An empty value is refused: it would select
// more than was meant.
func (t *queueTool) filterFlags(fs *flag.FlagSet) {
	f := &t.filter
	text := func(name, usage string, p *string) {
		fs.Var(each(func(s string) error {
			if s == "" {
				return errors.New("is empty")
			}
			*p = s
			return nil
		}), name, usage)
	}
	text("id", "the items of the message with this `ID`", (*string)(&f.ID))
	fs.Var(each(func(s string) error {
		n, err := strconv.ParseUint(s, 10, 64)
		if err == nil && n == 0 {
			err = errors.New("there is no item 0")
		}
		f.Item = queue.ItemID(n)
		return err
	}), "item", "the item with this `number`")
	text("sender", "items from this `address`; @DOMAIN: all of a domain; <>: reports", &f.Sender)
	text("recipient", "items that still wait for this `address`; @DOMAIN: all of a domain", &f.Recipient)
	text("domain", "items that still wait for a recipient of this `domain`", &f.Domain)
	text("tenant", "items of this `tenant`", &f.Tenant)
	text("stream", "items of this `stream`", &f.Stream)
	text("route", "items with this `route`, by default the recipients' domain", (*string)(&f.Route))
	fs.Var(each(func(s string) error {
		for st := queue.ItemDue; st <= queue.ItemHeld; st++ {
			if st.String() == s {
				f.State = st
				return nil
			}
		}
		return errors.New("the states are due, waiting, leased and held")
	}), "state", "items in this `state`: due, waiting, leased or held")
	fs.Var(&t.older, "older", "items of messages that came at least this `long` ago: 90m, 2d")
	fs.Var(&t.younger, "younger", "items of messages that came less than this `long` ago")
}

func (t *queueTool) completeFilter() error {
	f := &t.filter
	if t.id != "" {
		if f.ID != "" {
			return errors.New("-id, and an ID beside it")
		}
		f.ID = mailspine.MsgID(t.id)
	}
	if f.ID != "" {
		if err := f.ID.Validate(); err != nil {
			return fmt.Errorf("-id: %w", err)
		}
	}
	f.MinAge, f.MaxAge = time.Duration(t.older), time.Duration(t.younger)
	return f.Validate()
}

// An age is a duration that can have days.
type age time.Duration

func (a *age) String() string {
	if *a == 0 {
		return ""
	}
	return short(time.Duration(*a))
}

func (a *age) Set(s string) error {
	var d time.Duration
	rest := s
	if days, after, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return errors.New("a time is like 90m, 12h, 2d or 1d12h")
		}
		d, rest = time.Duration(n)*24*time.Hour, after
	}
	if rest != "" || s == "" {
		more, err := time.ParseDuration(rest)
		if err != nil || more < 0 {
			return errors.New("a time is like 90m, 12h, 2d or 1d12h")
		}
		d += more
	}
	if d <= 0 {
		return errors.New("a time is more than nothing")
	}
	*a = age(d)
	return nil
}

// short writes a duration in two units.
func short(d time.Duration) string {
	sign := ""
	if d < 0 {
		sign, d = "-", -d
	}
	switch s := int64(d / time.Second); {
	case s < 60:
		return fmt.Sprintf("%s%ds", sign, s)
	case s < 60*60:
		return fmt.Sprintf("%s%dm%02ds", sign, s/60, s%60)
	case s < 24*60*60:
		return fmt.Sprintf("%s%dh%02dm", sign, s/3600, s/60%60)
	default:
		return fmt.Sprintf("%s%dd%02dh", sign, s/86400, s/3600%24)
	}
}
