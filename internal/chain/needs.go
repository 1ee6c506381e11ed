package chain

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"stasis/internal/image"
	"stasis/internal/store"
)

// shardOf names a shard of any checkpoint.
type shardOf struct {
	id    string
	shard int
}

// span is a part of a shard, in bytes.
type span struct{ from, to int64 }

// needs says which parts of which shards some checkpoints need. The spans of a shard are sorted and don't touch when settle was
// called.
type needs map[shardOf][]span

// uses is what a checkpoint needs, of itself and of others.
type uses struct {
	id    string // of the checkpoint
	all   needs
	pages needs // without CRIU's images
}

// usesOf reads what a checkpoint needs from its index.
func usesOf(e *entry, roots []string) (*uses, error) {
	folder, err := store.OpenData(e.dir)
	if err != nil {
		return nil, err
	}
	c, err := openAny(folder, e.dir, roots)
	if err != nil {
		return nil, err
	}
	u := &uses{e.id, needs{}, needs{}}
	for _, b := range c.Uses() {
		id := e.id
		if b.Origin > 0 {
			id = c.Manifest().Origins[b.Origin-1].ID
		}
		at, s := shardOf{id, b.Shard}, span{b.Offset, b.Offset + b.Len}
		u.all[at] = append(u.all[at], s)
		if !b.File {
			u.pages[at] = append(u.pages[at], s)
		}
	}
	u.all.settle()
	u.pages.settle()
	return u, c.Close()
}

// add takes over what other needs of the checkpoints with these ids.
func (n needs) add(other needs, ids map[string]bool) {
	for at, spans := range other {
		if ids[at.id] {
			n[at] = append(n[at], spans...)
		}
	}
}

// settle sorts and joins.
func (n needs) settle() {
	for at, spans := range n {
		n[at] = joined(spans)
	}
}

func joined(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return int(min(max(a.from-b.from, -1), 1)) })
	var out []span
	for _, s := range spans {
		if k := len(out); k > 0 && s.from <= out[k-1].to {
			out[k-1].to = max(out[k-1].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return out
}

// lacking sums up what other needs of the checkpoints with these ids and n does not, in bytes.
func (n needs) lacking(other needs, ids map[string]bool) (total int64) {
	for at, spans := range other {
		if ids[at.id] {
			total += outside(spans, n[at])
		}
	}
	return total
}

// outside sums up the parts of spans that are in none of others. Both are settled.
func outside(spans, others []span) (total int64) {
	for _, s := range spans {
		total += s.to - s.from
		for len(others) > 0 && others[0].to <= s.from {
			others = others[1:]
		}
		for _, other := range others {
			if other.from >= s.to {
				break
			}
			total -= min(s.to, other.to) - max(s.from, other.from)
		}
	}
	return total
}

// of says whether anything of a checkpoint is needed.
func (n needs) of(id string) bool {
	for at, spans := range n {
		if at.id == id && len(spans) > 0 {
			return true
		}
	}
	return false
}

// bytes sums up what is needed of a checkpoint.
func (n needs) bytes(id string) (total int64) {
	for at, spans := range n {
		if at.id == id {
			for _, s := range spans {
				total += s.to - s.from
			}
		}
	}
	return total
}

// UnknownError says that nobody knows what some checkpoints need, so that nothing can be given up.
type UnknownError struct {
	Dirs []string // of these checkpoints
	Err  error    // why the first of them can't be read; nil: it is not there
}

func (e *UnknownError) Error() string {
	list := strings.Join(e.Dirs, ", ")
	if e.Err == nil {
		return fmt.Sprintf("%s may need this memory and is not there: bring it back, or say --force if it is gone for good", list)
	}
	return fmt.Sprintf("%s may need this memory and can't be read (%v): repair or remove it first, or say --force to take no account of it", list, e.Err)
}

func (e *UnknownError) Unwrap() error { return e.Err }

// needsOf gathers what all checkpoints that restore, but those in except, need of other checkpoints, those with these ids. With
// force, those that can't be read count as needing nothing.
func (f *forest) needsOf(ids map[string]bool, except map[*entry]bool, o *Options) (needs, error) {
	total := needs{}
	var unknown UnknownError
	lose := func(e *entry, err error) {
		unknown.Dirs = append(unknown.Dirs, e.dir)
		if unknown.Err == nil {
			unknown.Err = err
		}
	}
	for _, e := range f.unreadable() {
		if !except[e] && e.restores() {
			lose(e, e.err)
		}
	}
	for _, e := range f.entries {
		if except[e] || !e.restores() || e.err != nil || !f.concerns(e, ids) {
			continue
		}
		u, err := o.uses(e)
		if err != nil {
			lose(e, err)
			continue
		}
		for at, spans := range u.all {
			if ids[at.id] && at.id != e.id {
				total[at] = append(total[at], spans...)
			}
		}
	}
	total.settle()
	if len(unknown.Dirs) > 0 && !o.Force {
		return nil, &unknown
	}
	return total, nil
}

// concerns says whether a checkpoint may need one of ids.
func (f *forest) concerns(e *entry, ids map[string]bool) bool {
	return slices.ContainsFunc(e.m.Origins, func(o image.Origin) bool { return ids[o.ID] })
}

// uses is usesOf, once for each checkpoint: an operation asks more than once.
func (o *Options) uses(e *entry) (*uses, error) {
	if u, ok := o.known[e.dir]; ok && u.id == e.id {
		return u, nil
	}
	u, err := usesOf(e, o.Roots)
	if err != nil {
		return nil, err
	}
	if o.known == nil {
		o.known = map[string]*uses{}
	}
	o.known[e.dir] = u
	return u, nil
}

// isUnknown says whether an operation stopped because of what nobody knows.
func isUnknown(err error) bool {
	var unknown *UnknownError
	return errors.As(err, &unknown)
}
