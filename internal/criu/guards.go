package criu

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"stasis/internal/proc"
)

// MendGuards takes the guard pages (MADV_GUARD_INSTALL) of locked memory out of
// the image of a process' mappings, and returns them in the order of their
// addresses. CRIU dumps them, but locks memory before it installs guards, which
// the kernel refuses in memory that is locked: the whole restore would fail.
// A zombie has no such image, and no guards.
func MendGuards(dir string, pid int) ([]proc.Range, error) {
	path := filepath.Join(dir, fmt.Sprintf("mm-%d.img", pid))
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var taken []proc.Range
	err := rewriteEntries(path, func(raw []byte) ([]byte, error) {
		var e mm.MmEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return nil, err
		}
		locked := lockedAreas(e.Vmas)
		var kept []*vma.VmaEntry
		for _, a := range e.Vmas {
			if !isGuard(a) {
				kept = append(kept, a)
				continue
			}
			in, out := cut(proc.Range{Start: a.GetStart(), End: a.GetEnd()}, locked)
			taken = append(taken, in...)
			for _, r := range out {
				part := proto.CloneOf(a)
				part.Start, part.End = proto.Uint64(r.Start), proto.Uint64(r.End)
				kept = append(kept, part)
			}
		}
		if len(taken) == 0 {
			return raw, nil
		}
		e.Vmas = kept
		return proto.Marshal(&e)
	})
	return proc.Join(taken), err // CRIU can list some twice
}

func isGuard(a *vma.VmaEntry) bool { return a.GetStatus()&AreaGuard != 0 }

// lockedAreas are the locked mappings, in the order of their addresses.
func lockedAreas(areas []*vma.VmaEntry) (locked []proc.Range) {
	for _, a := range areas {
		if !isGuard(a) && a.GetFlags()&unix.MAP_LOCKED != 0 {
			locked = append(locked, proc.Range{Start: a.GetStart(), End: a.GetEnd()})
		}
	}
	slices.SortFunc(locked, func(a, b proc.Range) int { return cmp.Compare(a.Start, b.Start) })
	return locked
}

// cut tells the parts of r that lie in one of the sorted ranges from those that
// do not: the guards of neighbouring mappings are one.
func cut(r proc.Range, ranges []proc.Range) (in, out []proc.Range) {
	first := sort.Search(len(ranges), func(i int) bool { return ranges[i].End > r.Start })
	for _, other := range ranges[first:] {
		if other.Start >= r.End {
			break
		}
		if r.Start < other.Start {
			out = append(out, proc.Range{Start: r.Start, End: other.Start})
		}
		end := min(r.End, other.End)
		in = append(in, proc.Range{Start: max(r.Start, other.Start), End: end})
		r.Start = end
	}
	if r.Start < r.End {
		out = append(out, r)
	}
	return in, out
}
