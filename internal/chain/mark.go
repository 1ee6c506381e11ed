package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// dedupedName is the file that says that blocks of a checkpoint were given up. It is there, durably, before the first of them is.
const dedupedName = "deduplicated.json"

// maxMark bounds the size of a mark, in bytes.
const maxMark = 64 << 10

// DedupedError says that a checkpoint gave up memory of its own for one that was made on top of it, and so can't be restored,
// verified or dumped on.
type DedupedError struct {
	Dir  string
	Top  string // id of the checkpoint on top
	Path string // of that one, when it was done
	When time.Time
}

func (e *DedupedError) Error() string {
	return fmt.Sprintf("the checkpoint %s can't be used any more: it was deduplicated on %s, and keeps only the memory that others need: use %s (id %s) or another one",
		e.Dir, e.When.UTC().Format(time.DateTime), e.Path, e.Top)
}

// dedupMark is the content of the mark.
type dedupMark struct {
	Top  string    `json:"top"`  // id of the checkpoint for whose sake it was done
	Path string    `json:"path"` // of that one
	When time.Time `json:"when"`
}

// readMark returns the mark of a checkpoint, or nil where it has none. A mark that can't be understood still is one.
func readMark(dir string) (*dedupMark, error) {
	f, err := os.Open(filepath.Join(dir, dedupedName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // no mark is the usual case and no failure
	}
	if err != nil {
		return nil, fmt.Errorf("cannot tell whether %s was deduplicated: %w", dir, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxMark))
	if err != nil {
		return nil, fmt.Errorf("cannot tell whether %s was deduplicated: %w", dir, err)
	}
	m := new(dedupMark)
	if json.Unmarshal(text, m) != nil {
		m = &dedupMark{}
	}
	if m.Path == "" {
		m.Path = "the one on top"
	}
	return m, nil
}

// checkDeduped refuses a checkpoint that gave up blocks.
func checkDeduped(dir string) error {
	mark, err := readMark(dir)
	if err != nil || mark == nil {
		return err
	}
	return &DedupedError{Dir: dir, Top: mark.Top, Path: mark.Path, When: mark.When}
}

// Deduplicated says for whose sake the checkpoint in dir gave up memory; nil where it did not.
func Deduplicated(dir string) error { return checkDeduped(realPath(absolute(dir))) }
