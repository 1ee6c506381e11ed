package workdir

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Room tells where [New] would make a work folder for so many bytes, and how
// many bytes are free there.
func Room(near string, bytes uint64) (folder string, free uint64, err error) {
	for _, parent := range parents(near, bytes) {
		if err = unix.Access(parent, unix.W_OK); err != nil {
			continue
		}
		var fs unix.Statfs_t
		if err = unix.Statfs(parent, &fs); err == nil {
			return parent, fs.Bavail * uint64(fs.Bsize), nil
		}
	}
	return "", 0, fmt.Errorf("find a place for the work folder: %w", err)
}
