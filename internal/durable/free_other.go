//go:build !linux && !darwin && !freebsd && !dragonfly && !windows

package durable

// free is not known here: writes find out by themselves.
func free(string) (int64, error) { return 1 << 62, nil }
