package stasis

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"stasis/internal/proc"
)

// CRIU reads smaps for the flags of each mapping, and the kernel walks all page
// tables for that: 4 ms a GiB and more, of which CRIU uses nothing. So Stasis
// gives CRIU the list of mappings as it is in the freeze, with the flags as they
// were a moment before it, and looks again when the tree runs. Should a program
// have changed a flag at just that time, the dump is made anew without this.

// describeFrom is the size in bytes of hidden memory from which on the list is
// worth making.
const describeFrom = 64 << 20

// errFlagsChanged says that a mapping changed its flags, or its extent, around the
// freeze.
var errFlagsChanged = errors.New("a mapping changed around the freeze")

// flagsOfCRIU are the VmFlags that CRIU keeps in its images.
var flagsOfCRIU = []string{"gd", "lo", "nr", "ht", "dp", "sr", "rr", "dc", "dd", "mg", "hg", "nh", "wf", "io", "pf", "ss"}

// mayDescribe says whether this dump may be made anew if it has to be. Where
// the tree does not run on, the length of the freeze does not matter.
func (d *dump) mayDescribe() bool {
	return d.engine == EngineBlind && d.opts.After == AfterRun && d.opts.Target == nil && !d.exact
}

// describeMappings gives CRIU the mappings of a frozen process, now, with the
// flags that the last round has seen. When there is a mapping that the last
// round has not seen, CRIU reads smaps.
func (d *dump) describeMappings(p *process, now []proc.Mapping, hidden []proc.Range) {
	var bytes uint64
	for _, r := range hidden {
		bytes += r.Len()
	}
	if !d.mayDescribe() || bytes < describeFrom {
		return
	}
	described := slices.Clone(now)
	for i := range described {
		seen := findSame(p.maps, &described[i])
		if seen == nil {
			return
		}
		described[i].Flags = seen.Flags
	}
	if d.blind.Mappings(p.task.PID, described) {
		p.described = described
	}
}

// findSame finds the mapping of an earlier list that a mapping is, or has grown
// from: the kernel joins mappings only when their flags are the same.
func findSame(earlier []proc.Mapping, m *proc.Mapping) *proc.Mapping {
	i := sort.Search(len(earlier), func(i int) bool { return earlier[i].Start >= m.Start })
	if i == len(earlier) {
		return nil
	}
	e := &earlier[i]
	grown := e.Start >= m.Start && e.End <= m.End
	if grown && e.Perms == m.Perms && e.Dev == m.Dev && e.Inode == m.Inode && e.Path == m.Path {
		return e
	}
	return nil
}

// checkFlags looks whether the flags that were given to CRIU still hold, now
// that the tree runs. A mapping that has gone since cannot be asked any more;
// in a restored tree it will go as well.
func (d *dump) checkFlags() error {
	for pid, p := range d.processes {
		if p.described == nil {
			continue
		}
		now, err := proc.Smaps(pid)
		if errors.Is(err, proc.ErrGone) {
			continue
		}
		if err != nil {
			return err
		}
		for _, m := range now {
			if was := covering(p.described, m.Start); was != nil && was.Perms == m.Perms && was.Path == m.Path && keptFlags(was) != keptFlags(&m) {
				return fmt.Errorf("%w: %s of process %d, %q to %q", errFlagsChanged, m.Line, pid, keptFlags(was), keptFlags(&m))
			}
		}
	}
	return nil
}

// covering finds the mapping of a sorted list that an address lies in.
func covering(list []proc.Mapping, at uint64) *proc.Mapping {
	i := sort.Search(len(list), func(i int) bool { return list[i].End > at })
	if i == len(list) || list[i].Start > at {
		return nil
	}
	return &list[i]
}

// keptFlags are the flags of a mapping that a checkpoint keeps.
func keptFlags(m *proc.Mapping) string {
	var kept []string
	for _, flag := range flagsOfCRIU {
		if m.Has(flag) {
			kept = append(kept, flag)
		}
	}
	return strings.Join(kept, " ")
}
