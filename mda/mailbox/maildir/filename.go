package maildir

import (
	"slices"
	"strings"

	"github.com/mailspine/mailspine/mda/mailbox"
)

// letters are the flags that have a letter in file names, by letter.
var letters = [...]struct {
	letter byte
	flag   mailbox.Flag
}{
	{'D', mailbox.Draft},
	{'F', mailbox.Flagged},
	{'P', mailbox.Forwarded},
	{'R', mailbox.Answered},
	{'S', mailbox.Seen},
	{'T', mailbox.Deleted},
}

// info returns the letters of flags.
func info(flags []mailbox.Flag) string {
	var b []byte
	for _, l := range letters {
		if mailbox.HasFlag(flags, l.flag) {
			b = append(b, l.letter)
		}
	}
	return string(b)
}

// fileName returns where the body with a key belongs, relative to its mailbox's folder. What has
// been in cur stays there.
func fileName(key string, flags []mailbox.Flag, cur bool) string {
	in := info(flags)
	if in == "" && !cur {
		return "new/" + key
	}
	return "cur/" + key + string(infoSep) + "2," + in
}

// parseName takes the name of a file in new or cur apart, into what identifies the message
// and the letters of its flags. Any name is taken that can be one: what is unknown in it belongs
// to the programs that wrote it. ok is false for hidden files and for what
// cannot be a key.
func parseName(name string) (key, in string, ok bool) {
	if name == "" || name[0] == '.' {
		return "", "", false
	}
	key, rest, _ := strings.Cut(name, string(infoSep))
	if key == "" || len(key) > 255 || strings.ContainsAny(key, "/\x00") {
		return "", "", false
	}
	if s, found := strings.CutPrefix(rest, "2,"); found {
		for _, l := range letters {
			if strings.IndexByte(s, l.letter) >= 0 {
				in += string(l.letter)
			}
		}
	}
	return key, in, true
}

// withInfo returns flags as the letters of a file name say, and the others as they are.
func withInfo(flags []mailbox.Flag, in string) []mailbox.Flag {
	var out []mailbox.Flag
	for _, f := range flags {
		if !slices.ContainsFunc(letters[:], func(l struct {
			letter byte
			flag   mailbox.Flag
		}) bool {
			return l.flag == f
		}) {
			out = append(out, f)
		}
	}
	for _, l := range letters {
		if strings.IndexByte(in, l.letter) >= 0 {
			out = append(out, l.flag)
		}
	}
	slices.Sort(out)
	return out
}
