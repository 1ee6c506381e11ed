package convert

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"stasis/internal/chain"
	"stasis/internal/image"
	"stasis/internal/image/reader"
)

// maxLine bounds how many checkpoints are opened together.
const maxLine = 10000

// Line is a checkpoint with its ancestors, opened.
type Line struct {
	Checkpoints []*reader.Checkpoint // oldest first
	Note        string               // why it does not go back to the first, if it does not
	locks       []*chain.Lock
}

// Close closes all checkpoints.
func (l *Line) Close() error {
	var errs []error
	for _, c := range l.Checkpoints {
		errs = append(errs, c.Close())
	}
	for _, lock := range l.locks {
		errs = append(errs, lock.Unlock())
	}
	return errors.Join(errs...)
}

// open adds a checkpoint, which nobody can remove or deduplicate from then on.
func (l *Line) open(ctx context.Context, dir string, roots []string) (*reader.Checkpoint, error) {
	lock, err := chain.LockShared(ctx, dir, roots...)
	if err != nil {
		return nil, err
	}
	c, err := lock.Open()
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	l.Checkpoints, l.locks = append(l.Checkpoints, c), append(l.locks, lock)
	return c, nil
}

// OpenLine opens the checkpoint in the folder dir and, if wanted, its parent, the parent's parent and so on. A line ends, with a
// note, before a parent that is not there any more or has been deduplicated: the pages that are still needed of it then come
// with the oldest that is whole. Ancestors are looked for as [chain.Open] does, in roots too.
func OpenLine(ctx context.Context, dir string, ancestors bool, roots ...string) (*Line, error) {
	line := &Line{}
	c, err := line.open(ctx, dir, roots)
	if err != nil {
		return nil, err
	}
	for ancestors && c.Manifest().Parent != "" {
		m := c.Manifest()
		next, err := parentOf(m, dir, roots)
		if err == nil {
			c, err = line.open(ctx, next, roots)
		}
		if err != nil {
			line.Note = fmt.Sprintf("the line begins with %s, because the checkpoint before it cannot be exported: %v", m.Name, err)
			break
		}
		if dir = next; len(line.Checkpoints) > maxLine {
			return nil, errors.Join(fmt.Errorf("%s has more than %d ancestors: export without --chain", m.Name, maxLine), line.Close())
		}
	}
	slices.Reverse(line.Checkpoints)
	return line, nil
}

// parentOf finds the folder of the parent of a checkpoint.
func parentOf(m *image.Manifest, dir string, roots []string) (string, error) {
	id, err := image.ParseID(m.Parent)
	if err != nil {
		return "", err
	}
	src, err := chain.Resolver(m, dir, roots...)(id)
	if err != nil {
		return "", err
	}
	return src.Name(), nil
}
