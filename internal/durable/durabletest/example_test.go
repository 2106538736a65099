package durabletest_test

import (
	"fmt"

	"github.com/mailspine/mailspine/internal/durable"
	"github.com/mailspine/mailspine/internal/durable/durabletest"
)

// A file that was synced, and whose name was not, may be gone after a power cut.
func ExampleDisk_Crash() {
	var disk durabletest.Disk
	f, err := durable.Create(&disk, "mail", 0o600, []byte("hello"))
	if err != nil {
		fmt.Println(err)
		return
	}
	f.Close()
	_, err = disk.Crash(0).Stat("mail")
	fmt.Println(err)

	disk.SyncDir(".")
	fi, err := disk.Crash(0).Stat("mail")
	fmt.Println(fi.Size(), err)
	// Output:
	// stat mail: no such file or directory
	// 5 <nil>
}
