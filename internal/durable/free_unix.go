//go:build linux || darwin || freebsd || dragonfly

package durable

import (
	"os"

	"golang.org/x/sys/unix"
)

func free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	// Bavail may be negative on BSD when root has used the reserve.
	blocks, size := int64(st.Bavail), int64(st.Bsize)
	if blocks < 0 {
		blocks = 0
	}
	if size > 0 && blocks > (1<<62)/size {
		return 1 << 62, nil
	}
	return blocks * size, nil
}
