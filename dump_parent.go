package stasis

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"stasis/internal/chain"
	"stasis/internal/image"
)

// parentThere checks that the parent and its ancestors are where a restore of
// the new checkpoint would look for them. Nobody reads them during a dump, so
// that one that has been removed, or replaced, would not be noticed before.
func (d *dump) parentThere(step Step) error {
	if d.parent == nil {
		return nil
	}
	near := d.opts.Dir
	if near == "" {
		near = d.opts.Parent
	}
	for _, missing := range chain.Missing(&image.Manifest{Origins: d.ancestors()}, near) {
		return d.withoutParent(step, fmt.Errorf("%s of %s: put its folder back, there or beside %[2]s", missing.Lost(), d.opts.Parent))
	}
	for _, shard := range d.parent.Manifest().Shards {
		info, err := os.Stat(filepath.Join(d.opts.Parent, shard.Name))
		if err == nil && info.Size() != shard.Size {
			err = fmt.Errorf("it has %d bytes instead of %d", info.Size(), shard.Size)
		}
		if err != nil {
			return d.withoutParent(step, fmt.Errorf("%s of %s: %w", shard.Name, d.opts.Parent, err))
		}
	}
	return nil
}

func (d *dump) withoutParent(step Step, err error) error {
	return d.fail(step, ErrDamaged, fmt.Errorf("the parent is not whole, and the checkpoint could not be restored without it: %w; or dump without a parent", err))
}

// ancestors are all that the new checkpoint may refer to, with the paths that
// its manifest will have for them.
func (d *dump) ancestors() []image.Origin {
	m, path := d.parent.Manifest(), d.parentPath()
	list := []image.Origin{{ID: m.ID, Path: path}}
	for _, o := range m.Origins {
		if o.Path != "" && !filepath.IsAbs(o.Path) && !strings.Contains(o.Path, "://") {
			o.Path = filepath.Join(path, o.Path)
		}
		list = append(list, o)
	}
	return list
}

// parentStillThere is parentThere once the checkpoint exists, before the tree
// is ended for it.
func (d *dump) parentStillThere() error {
	if err := d.parentThere(StepPublish); err != nil {
		return errors.Join(errors.New("the checkpoint was written, but it is of no use: the tree was not ended"), err)
	}
	return nil
}

// isDamage says whether an error is that of a checkpoint that was read.
func isDamage(err error) bool {
	var damage *image.DamageError
	var version *image.VersionError
	return errors.As(err, &damage) || errors.As(err, &version)
}
