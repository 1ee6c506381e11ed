package image

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// refer makes groups of the parent's blocks that have pieces. They are spread over the indexes, so that none gets much larger
// than the others.
func (p *plan) refer() error {
	if p.records.parent == nil {
		return nil
	}
	refs, weight := p.references(), 0
	shards := map[ancestorShard][]keyed{}
	for i := range refs {
		at := ancestorShard{refs[i].origin, refs[i].shard}
		shards[at] = append(shards[at], keyed{uint64(refs[i].off), uint32(i)})
		weight += p.weight(&refs[i])
	}
	sorted := slices.SortedFunc(maps.Keys(shards), func(a, b ancestorShard) int {
		return cmp.Or(cmp.Compare(a.origin, b.origin), cmp.Compare(a.shard, b.shard))
	})
	origins, err := p.renumber(sorted)
	if err != nil {
		return err
	}
	share, filled := weight/len(p.records.shards)+1, 0
	for _, at := range sorted {
		var g *group
		left, pieces := len(shards[at]), 0
		for _, k := range shards[at] {
			pieces += p.weight(&refs[k.at]) - 1
		}
		for n, k := range radixSort(shards[at]) {
			if to := filled / share; g == nil || p.to[len(p.to)-1] != to {
				g = &group{origin: origins[at.origin], shard: uint32(at.shard)}
				g.blocks = make([]indexBlock, 0, min(left-n, share))
				g.pieces = make([]extent, 0, min(pieces, share))
				p.groups, p.to = append(p.groups, g), append(p.to, to)
			}
			r := &refs[k.at]
			p.add(len(p.groups)-1, r.index(), r.number)
			filled += p.weight(r)
		}
	}
	return nil
}

// reference is a block of the parent that is referred to.
type reference struct {
	*block
	number uint32 // as the plan counts; noBlock for one of a file
	file   fileRef
}

// references lists the parent's blocks that have pieces, and its pieces of files.
func (p *plan) references() []reference {
	blocks, n := p.records.parent.blocks, 0
	for i, count := range p.counts[p.own:] {
		if count > 0 || p.based[p.own+i] {
			n++
		}
	}
	out := make([]reference, 0, n+len(p.records.fileRefs))
	for i, count := range p.counts[p.own:] {
		if count > 0 || p.based[p.own+i] {
			out = append(out, reference{block: &blocks[i], number: uint32(p.own + i)})
		}
	}
	for _, f := range p.records.fileRefs {
		out = append(out, reference{&f.piece.block, noBlock, f})
	}
	return out
}

// weight is about how much of an index a reference takes.
func (p *plan) weight(r *reference) int {
	if r.number == noBlock {
		return 1
	}
	return 1 + int(p.counts[r.number])
}

// index is the form that the block has in an index.
func (r *reference) index() indexBlock {
	b := r.block.index()
	if r.number == noBlock {
		b.file, b.where = r.file.file, uint64(r.file.piece.where)
	}
	return b
}

// renumber makes the list of the ancestors that are used, the parent first where it is, and returns the new number of each of
// the parent's origins.
func (p *plan) renumber(used []ancestorShard) ([]uint32, error) {
	numbers := make([]uint32, len(p.records.parentOrigins)+1)
	for _, at := range used {
		if numbers[at.origin] > 0 {
			continue
		}
		o := Origin{ID: hex.EncodeToString(p.records.parentID[:]), Path: p.records.parentPath}
		if at.origin > 0 {
			o = p.records.parentOrigins[at.origin-1]
			o.Path = rebase(o.Path, p.records.parentPath)
		}
		p.origins = append(p.origins, o)
		numbers[at.origin] = uint32(len(p.origins))
	}
	if len(p.origins) > math.MaxUint16 {
		return nil, fmt.Errorf("the checkpoint would refer to %d ancestors, and can refer to %d: make a full one, without a parent", len(p.origins), math.MaxUint16)
	}
	return numbers, nil
}

// rebase makes of the path of an ancestor, as the parent has it, that from the new checkpoint. Addresses and absolute paths
// hold from anywhere; an empty path says that nobody knows.
func rebase(path, parent string) string {
	switch {
	case path == "" || filepath.IsAbs(path) || strings.Contains(path, "://"):
		return path
	case parent == "":
		return ""
	case strings.Contains(parent, "://"):
		if joined, err := url.JoinPath(parent, path); err == nil {
			return joined
		}
		return ""
	}
	return filepath.Join(parent, path)
}
