package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"stasis/internal/health"
	"stasis/internal/trust"
)

// lowSpace is the share of a file system below which it counts as nearly full.
const lowSpace = 0.05

// checkItself looks at what the daemon needs besides a fit machine.
func (d *Daemon) checkItself() []health.Result {
	results := []health.Result{d.checkFolder(), d.checkSpace()}
	if d.jobs != nil {
		all, running := d.jobs.Counts(0)
		results = append(results, health.Result{Name: "jobs", Status: health.OK, Detail: fmt.Sprintf("%d, of which %d run", all, running)})
	}
	return results
}

// checkFolder: a checkpoint in a folder that others can write to is not restored.
func (d *Daemon) checkFolder() health.Result {
	dir := d.engine.Catalog.Dir()
	r := health.Result{Name: "checkpoints", Status: health.OK, Detail: fmt.Sprintf("%d in %s", len(d.engine.Catalog.List()), dir)}
	err := trust.Way(dir)
	switch not := (*trust.Error)(nil); {
	case errors.Is(err, os.ErrNotExist):
		r.Detail = "none yet: " + dir + " will be made"
	case errors.As(err, &not):
		r.Status, r.Detail = health.Fail, err.Error()
		r.Remedy = "chown root:root " + not.Path + " and chmod go-w " + not.Path + ", or choose another folder (checkpoint.dir)"
	case err != nil:
		r.Status, r.Detail, r.Remedy = health.Fail, err.Error(), "choose another folder (checkpoint.dir)"
	}
	return r
}

// checkSpace looks at the file system of the checkpoints, or of the nearest folder above that is there.
func (d *Daemon) checkSpace() health.Result {
	r := health.Result{Name: "disk space", Status: health.OK}
	var st unix.Statfs_t
	dir := d.engine.Catalog.Dir()
	err := unix.Statfs(dir, &st)
	for errors.Is(err, unix.ENOENT) && dir != "/" {
		dir = filepath.Dir(dir)
		err = unix.Statfs(dir, &st)
	}
	if err != nil {
		r.Status, r.Detail = health.Fail, dir+": "+err.Error()
		return r
	}
	free, all := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize) //nolint:gosec // the block size is positive
	r.Detail = fmt.Sprintf("%.1f GiB of %.1f GiB are free for checkpoints", float64(free)/(1<<30), float64(all)/(1<<30))
	if float64(free) < lowSpace*float64(all) {
		r.Status, r.Remedy = health.Warn, "delete old checkpoints (stasis prune), or set checkpoint.keep_bytes"
	}
	return r
}
