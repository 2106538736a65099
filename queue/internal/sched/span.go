package sched

import "time"

// MaxSpan is what longer delays are cut to, 73 years, so that no sum of times overflows.
const MaxSpan = 1 << 61

// Span is a delay as it is calculated with: not negative, and not over MaxSpan.
func Span(d time.Duration) int64 { return min(max(0, int64(d)), MaxSpan) }

// Strings returns a list of routes as strings.
func Strings[R ~string](list []R) []string {
	s := make([]string, len(list))
	for i, r := range list {
		s[i] = string(r)
	}
	return s
}
