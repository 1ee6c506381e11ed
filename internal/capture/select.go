package capture

import (
	"cmp"
	"slices"

	"stasis/internal/proc"
)

// Process is one process of a tree with its mappings as smaps shows them.
type Process struct {
	PID      int
	Mappings []proc.Mapping
}

// sharedShare bounds what a restored tree may use more than before: pages that
// processes share since fork and that Stasis copies come back once for each of
// them. Mappings are taken, least shared first, as long as the sum stays below
// this part of the tree's anonymous memory; the others stay with CRIU, which
// keeps them shared.
const sharedShare = 0.02

// Select chooses the mappings of a tree that Stasis copies itself; everything
// else stays with CRIU. The result is by pid, in address order.
func Select(tree []Process) map[int][]proc.Mapping {
	var sharing []candidate
	chosen := make(map[int][]proc.Mapping, len(tree))
	var total uint64
	for _, p := range tree {
		for _, m := range p.Mappings {
			total += m.AnonBytes
			switch {
			case !Eligible(m):
			case m.SharedAnon > 0:
				sharing = append(sharing, candidate{pid: p.PID, Mapping: m})
			default:
				chosen[p.PID] = append(chosen[p.PID], m)
			}
		}
	}
	markShared(sharing)
	slices.SortStableFunc(sharing, func(a, b candidate) int { return cmp.Compare(a.SharedAnon, b.SharedAnon) })
	budget := uint64(float64(total) * sharedShare)
	for _, c := range sharing {
		if c.inTree && c.SharedAnon > budget {
			continue
		}
		if c.inTree {
			budget -= c.SharedAnon
		}
		chosen[c.pid] = append(chosen[c.pid], c.Mapping)
	}
	for _, list := range chosen {
		slices.SortFunc(list, func(a, b proc.Mapping) int { return cmp.Compare(a.Start, b.Start) })
	}
	return chosen
}

// candidate is a mapping with pages that some other process maps as well.
type candidate struct {
	pid int
	proc.Mapping
	inTree bool // that process may be one of the tree
}

// markShared finds the candidates that share addresses with one of another
// process of the tree. Pages that are shared with a process outside of the tree
// cannot stay shared, whoever restores them.
func markShared(all []candidate) {
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.Start, b.Start) })
	var open []*candidate // those that reach beyond the address looked at
	for i := range all {
		c := &all[i]
		open = slices.DeleteFunc(open, func(o *candidate) bool { return o.End <= c.Start })
		for _, o := range open {
			if o.pid != c.pid {
				o.inTree, c.inTree = true, true
			}
		}
		open = append(open, c)
	}
}

// Eligible says whether CRIU would restore the mapping lazily, which is what
// the memory that Stasis puts back itself has to be: private, anonymous, not
// huge by request, not locked, and no stack, which CRIU itself works on.
func Eligible(m proc.Mapping) bool {
	if !m.Private() || !m.Anonymous() {
		return false
	}
	for _, flag := range notOurs {
		if m.Has(flag) {
			return false
		}
	}
	return true
}

// notOurs are the VmFlags (proc_pid_smaps(5)) of memory that stays with CRIU.
var notOurs = []string{
	"lo", // locked: CRIU fills it before it locks it
	"ht", // hugetlb
	"gd", // grows down: a stack
	"io", // memory of a device
	"pf", // pages without a struct page
	"um", // another userfaultfd serves it
	"ui",
	"wf", // wiped on fork, which the pager of a lazy restore would not see
	"ss", // a shadow stack
}
