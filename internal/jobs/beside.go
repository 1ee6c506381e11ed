package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"stasis/internal/image"
	"stasis/internal/jobs/db"
	"stasis/internal/store"
)

// What stands beside the checkpoints, so that the database can be made anew.
const identityName = "job.json"

func recordPath(dir string) string { return dir + ".json" }

// writeIdentity writes the job beside its checkpoints.
func (j *job) writeIdentity() error {
	j.mu.RLock()
	rec := j.rec
	j.mu.RUnlock()
	if _, err := os.Stat(j.dir()); errors.Is(err, fs.ErrNotExist) {
		return nil // it has no checkpoint yet
	}
	return writeJSON(filepath.Join(j.dir(), identityName), rec)
}

func (j *job) removeIdentity() {
	_ = os.Remove(filepath.Join(j.dir(), identityName))
	_ = os.Remove(j.dir()) // if it is empty
}

// keepAside renames the identity of a job that is forgotten while its checkpoints stay, so that it does not come back by itself.
func (j *job) keepAside() {
	path := filepath.Join(j.dir(), identityName)
	_ = os.Rename(path, path+".removed")
}

// writeRecord writes what is known of a checkpoint beside it.
func (j *job) writeRecord(cp *db.Checkpoint) error { return writeJSON(recordPath(cp.Dir), cp) }

// announce notes beside a checkpoint that is about to be published what its manifest does not know, so that it is not lost with a
// daemon that is killed between that and writeRecord. The job stands still: nothing waits for the disk here.
func announce(cp *db.Checkpoint) error {
	if len(cp.Files) == 0 && cp.ConsoleFlags == 0 {
		return nil
	}
	text, err := json.Marshal(cp)
	if err == nil {
		err = os.WriteFile(recordPath(cp.Dir), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write beside the checkpoint: %w", err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write beside the checkpoints: %w", err)
	}
	_, err = file.Write(append(text, '\n'))
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("write beside the checkpoints: %w", errors.Join(err, os.Remove(path+".new")))
	}
	return nil
}

// findJobs looks for jobs that have checkpoints and are not known.
func (m *Manager) findJobs(known map[string]bool) ([]db.Job, error) {
	var found []db.Job
	for _, pattern := range []string{"jobs/*/", "users/*/jobs/*/"} {
		paths, err := fs.Glob(os.DirFS(m.o.Checkpoints), pattern+identityName) // the folder itself may have a name with a star in it
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			path = filepath.Join(m.o.Checkpoints, path)
			var rec db.Job
			text, err := os.ReadFile(path)
			if err == nil {
				err = json.Unmarshal(text, &rec)
			}
			if err != nil || rec.Spec.Name == "" || m.checkpointDir(rec.Owner, rec.Spec.Name) != filepath.Dir(path) {
				m.log.Error("a job's identity cannot be read", "path", path, "error", err)
				continue
			}
			if known[rec.Spec.Name] {
				continue
			}
			known[rec.Spec.Name] = true
			// It stands there as it was before its last checkpoint; what it does now its shim tells.
			if rec.State != db.StateRunning {
				rec.State = db.StateBackoff
			}
			found = append(found, rec)
		}
	}
	return found, nil
}

// reconcile makes the job's list of checkpoints agree with its folder: one that was published a moment before the daemon died is not in
// the database yet, and one that somebody deleted still is.
func (j *job) reconcile() {
	entries, err := os.ReadDir(j.dir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		j.m.log.Error("the job's checkpoints cannot be listed", "job", j.name(), "error", err)
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	there := make(map[uint64]bool)
	known := make(map[uint64]bool)
	for _, cp := range j.cps {
		known[cp.Seq] = true
	}
	for _, entry := range entries {
		seq, err := strconv.ParseUint(entry.Name(), 10, 64)
		if err != nil || !entry.IsDir() || entry.Name() != number(seq) {
			continue
		}
		dir := filepath.Join(j.dir(), entry.Name())
		if _, err := os.Stat(filepath.Join(dir, store.ManifestName)); err != nil {
			continue // being deleted, or never published
		}
		there[seq] = true
		if known[seq] {
			continue
		}
		cp, err := readRecord(dir, j.name(), seq)
		if err != nil {
			j.m.log.Error("a checkpoint cannot be read", "dir", dir, "error", err)
			continue
		}
		j.cps = append(j.cps, cp)
		j.rec.LastSeq = max(j.rec.LastSeq, seq)
		if !known[j.rec.Parent] || seq > j.rec.Parent {
			j.rec.Parent = seq
		}
		if err := j.m.db.PutCheckpoint(cp, j.rec); err != nil {
			j.m.log.Error("the database cannot be written", "job", j.name(), "error", err)
		}
	}
	for _, entry := range entries { // beside a checkpoint that never came to be
		for _, suffix := range []string{filesPath(""), recordPath("")} {
			digits, isBeside := strings.CutSuffix(entry.Name(), suffix)
			if seq, err := strconv.ParseUint(digits, 10, 64); isBeside && err == nil && !there[seq] {
				_ = os.RemoveAll(filepath.Join(j.dir(), entry.Name()))
			}
		}
	}
	var gone []uint64
	j.cps = slices.DeleteFunc(j.cps, func(cp db.Checkpoint) bool {
		if !there[cp.Seq] {
			gone = append(gone, cp.Seq)
		}
		return !there[cp.Seq]
	})
	slices.SortFunc(j.cps, func(a, b db.Checkpoint) int { return int(a.Seq) - int(b.Seq) }) //nolint:gosec // few
	if len(gone) > 0 {
		if err := j.m.db.DeleteCheckpoints(j.name(), gone...); err != nil {
			j.m.log.Error("the database cannot be written", "job", j.name(), "error", err)
		}
	}
	if err := j.m.db.PutJob(j.rec); err != nil {
		j.m.log.Error("the database cannot be written", "job", j.name(), "error", err)
	}
}

// readRecord reads what stands beside a checkpoint, and what is not there from its manifest.
func readRecord(dir, job string, seq uint64) (db.Checkpoint, error) {
	var cp db.Checkpoint
	text, err := os.ReadFile(recordPath(dir))
	if err != nil || json.Unmarshal(text, &cp) != nil || cp.Seq != seq || cp.Job != job {
		cp = db.Checkpoint{Job: job, Seq: seq, Reason: ReasonRequest}
	}
	cp.Dir = dir
	if cp.ID != "" {
		return cp, nil
	}
	m, err := manifestOf(dir)
	if err != nil {
		return cp, err
	}
	fillIn(&cp, m, time.Duration(m.Figures.DumpUS)*time.Microsecond)
	return cp, nil
}

func manifestOf(dir string) (*image.Manifest, error) {
	folder, err := store.OpenFolder(dir)
	if err != nil {
		return nil, err
	}
	return image.ReadManifest(folder)
}
