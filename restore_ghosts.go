package stasis

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
)

// removeGhosts removes what a killed restore of this checkpoint has left in the
// place of deleted files: CRIU gives them names for a moment, and fails where there
// is one already. Only what is younger than the checkpoint is removed, from the
// mounts that are this process' own.
func (r *restore) removeGhosts() error {
	m := r.checkpoint.Manifest()
	if !r.hasFile(criu.RemapsImage) || r.criuOpts.Root != "" || len(m.Processes) == 0 || slices.Contains(m.Processes[0].OwnNamespaces, "mnt") {
		return nil
	}
	var images [2][]byte
	for i, name := range []string{criu.FilesImage, criu.RemapsImage} {
		var err error
		if images[i], err = os.ReadFile(filepath.Join(r.work.Path(), name)); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
	}
	ghosts, err := criu.Ghosts(images[0], images[1])
	if err != nil {
		return r.fail(StepUnpack, ErrDamaged, err)
	}
	for _, path := range ghosts {
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil || !time.Unix(st.Ctim.Unix()).After(m.Created) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("an earlier restore that was killed has left %s, which is in the way: %w", path, err)
		}
	}
	return nil
}
