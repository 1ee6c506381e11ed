package convert

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"stasis/internal/image"
	"stasis/internal/proc"
)

// sharedShare bounds the memory that comes back once for each process instead of shared since fork, as in a dump: see
// capture.Select.
const sharedShare = 0.02

// sharedAreas finds the mappings whose pages a process shares with its parent since the fork. CRIU's images have such pages
// twice; in a restore CRIU compares them, where both processes have the same mapping, and shares them again. Stasis cannot, so
// they stay with CRIU, but for the least shared ones.
func (i *importing) sharedAreas() (map[proc.Range]bool, error) {
	sums, total := map[proc.Range]int64{}, int64(0)
	for _, p := range i.state.processes {
		for _, s := range p.space {
			total += s.bytes()
		}
		parent := i.state.byPID[p.PPID]
		if p.mm == nil || parent == nil || parent.mm == nil {
			continue
		}
		theirs := map[proc.Range]bool{}
		for _, area := range parent.lazyableAreas() {
			theirs[area] = true
		}
		for _, area := range p.lazyableAreas() {
			if !theirs[area] {
				continue
			}
			same, err := i.equalBytes(within(p.space, area), within(parent.space, area))
			if err != nil {
				return nil, err
			}
			if same > 0 {
				sums[area] += same
			}
		}
	}
	areas := slices.SortedFunc(maps.Keys(sums), func(a, b proc.Range) int {
		return cmp.Or(cmp.Compare(sums[a], sums[b]), cmp.Compare(a.Start, b.Start))
	})
	budget, shared := int64(float64(total)*sharedShare), map[proc.Range]bool{}
	for _, area := range areas {
		if budget -= sums[area]; budget < 0 {
			shared[area] = true
		}
	}
	return shared, nil
}

// within is the part of a list that lies in a range.
func within(list []stretch, r proc.Range) []stretch {
	from, _ := slices.BinarySearchFunc(list, r.Start, func(s stretch, at uint64) int {
		if s.end() <= at {
			return -1
		}
		return 1
	})
	var parts []stretch
	for _, s := range list[from:] {
		if s.start >= r.End {
			break
		}
		parts = append(parts, s.part(r.Start, r.End))
	}
	return parts
}

// equalBytes sums up the pages that two processes have at the same addresses with the same content.
func (i *importing) equalBytes(a, b []stretch) (int64, error) {
	var same int64
	bufferA, bufferB := make([]byte, image.MaxBlock), make([]byte, image.MaxBlock)
	for len(a) > 0 && len(b) > 0 {
		if err := i.ctx.Err(); err != nil {
			return 0, err
		}
		from, to := max(a[0].start, b[0].start), min(a[0].end(), b[0].end())
		if from >= to {
			if a[0].end() <= b[0].start {
				a = a[1:]
			} else {
				b = b[1:]
			}
			continue
		}
		to = min(to, from+image.MaxBlock)
		n := to - from
		pa, pb := a[0].part(from, to), b[0].part(from, to)
		if err := pa.in.readPages(bufferA[:n], pa.at); err != nil {
			return 0, err
		}
		if err := pb.in.readPages(bufferB[:n], pb.at); err != nil {
			return 0, err
		}
		for at := uint64(0); at < n; at += pageSize {
			if bytes.Equal(bufferA[at:at+pageSize], bufferB[at:at+pageSize]) {
				same += pageSize
			}
		}
		a, b = cutFront(a, to), cutFront(b, to)
	}
	return same, nil
}

// cutFront drops what lies before an address.
func cutFront(list []stretch, at uint64) []stretch {
	if list[0].end() <= at {
		return list[1:]
	}
	return append([]stretch{list[0].part(at, list[0].end())}, list[1:]...)
}
