//go:build !windows

package maildir

// infoSep stands between the unique part of a file name and the flags.
const infoSep = ':'
