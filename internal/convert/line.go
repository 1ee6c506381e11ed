package convert

import (
	"errors"
	"fmt"
	"slices"

	"stasis/internal/chain"
	"stasis/internal/image"
	"stasis/internal/store"
)

// maxLine bounds how many checkpoints are opened together.
const maxLine = 10000

// Line is a checkpoint with its ancestors, opened.
type Line struct {
	Checkpoints []*image.Checkpoint // oldest first
	Note        string              // why it does not go back to the first, if it does not
}

// Close closes all checkpoints.
func (l *Line) Close() error {
	var errs []error
	for _, c := range l.Checkpoints {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// OpenLine opens the checkpoint in the folder dir and, if wanted, its parent, the parent's parent and so on. A line ends, with a
// note, before a parent that is not there any more or has been deduplicated: the pages that are still needed of it then come
// with the oldest that is whole. Ancestors are looked for as [chain.Open] does, in roots too.
func OpenLine(dir string, ancestors bool, roots ...string) (*Line, error) {
	c, err := chain.Open(dir, roots...)
	if err != nil {
		return nil, err
	}
	line := &Line{Checkpoints: []*image.Checkpoint{c}}
	for ancestors && c.Manifest().Parent != "" {
		m := c.Manifest()
		next, nextDir, err := openParent(m, dir, roots)
		if err != nil {
			line.Note = fmt.Sprintf("the line begins with %s, because the checkpoint before it cannot be exported: %v", m.Name, err)
			break
		}
		line.Checkpoints = append(line.Checkpoints, next)
		if c, dir = next, nextDir; len(line.Checkpoints) > maxLine {
			return nil, errors.Join(fmt.Errorf("%s has more than %d ancestors: export without --chain", m.Name, maxLine), line.Close())
		}
	}
	slices.Reverse(line.Checkpoints)
	return line, nil
}

func openParent(m *image.Manifest, dir string, roots []string) (*image.Checkpoint, string, error) {
	id, err := image.ParseID(m.Parent)
	if err != nil {
		return nil, "", err
	}
	src, err := chain.Resolver(m, dir, roots...)(id)
	if err != nil {
		return nil, "", err
	}
	folder, ok := src.(*store.Folder)
	if !ok {
		return nil, "", fmt.Errorf("%s is not a folder", src.Name())
	}
	c, err := chain.Open(folder.Name(), roots...)
	return c, folder.Name(), err
}
