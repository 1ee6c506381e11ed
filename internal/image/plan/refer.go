package plan

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

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/radix"
	"stasis/internal/image/tables"
)

// refer makes groups of the parent's blocks that have pieces. They are spread over the indexes, so that none gets much larger
// than the others.
func (p *Plan) refer() error {
	if p.records.Parent == nil {
		return nil
	}
	refs, weight := p.references(), 0
	shards := map[tables.AncestorShard][]radix.Item{}
	for i := range refs {
		at := tables.AncestorShard{Origin: refs[i].Origin, Shard: refs[i].Shard}
		shards[at] = append(shards[at], radix.Item{Key: uint64(refs[i].Off), At: uint32(i)})
		weight += p.weight(&refs[i])
	}
	sorted := slices.SortedFunc(maps.Keys(shards), func(a, b tables.AncestorShard) int {
		return cmp.Or(cmp.Compare(a.Origin, b.Origin), cmp.Compare(a.Shard, b.Shard))
	})
	origins, err := p.renumber(sorted)
	if err != nil {
		return err
	}
	share, filled := weight/len(p.records.Shards)+1, 0
	for _, at := range sorted {
		var g *ondisk.Group
		left, pieces := len(shards[at]), 0
		for _, k := range shards[at] {
			pieces += p.weight(&refs[k.At]) - 1
		}
		for n, k := range radix.Sort(shards[at]) {
			if to := filled / share; g == nil || p.to[len(p.to)-1] != to {
				g = &ondisk.Group{Origin: origins[at.Origin], Shard: uint32(at.Shard)}
				g.Blocks = make([]ondisk.IndexBlock, 0, min(left-n, share))
				g.Pieces = make([]ondisk.Piece, 0, min(pieces, share))
				p.groups, p.to = append(p.groups, g), append(p.to, to)
			}
			r := &refs[k.At]
			p.add(len(p.groups)-1, r.inIndex(), r.number)
			filled += p.weight(r)
		}
	}
	return nil
}

// reference is a block of the parent that is referred to.
type reference struct {
	*tables.Block
	number uint32 // as the plan counts; ondisk.NoBlock for one of a file
	file   FileRef
}

// references lists the parent's blocks that have pieces, and its pieces of files.
func (p *Plan) references() []reference {
	blocks, n := p.records.Parent.BlockTable, 0
	for i, count := range p.counts[p.own:] {
		if count > 0 || p.based[p.own+i] {
			n++
		}
	}
	out := make([]reference, 0, n+len(p.records.FileRefs))
	for i, count := range p.counts[p.own:] {
		if count > 0 || p.based[p.own+i] {
			out = append(out, reference{Block: &blocks[i], number: uint32(p.own + i)})
		}
	}
	for _, f := range p.records.FileRefs {
		out = append(out, reference{&f.Piece.Block, ondisk.NoBlock, f})
	}
	return out
}

// weight is about how much of an index a reference takes.
func (p *Plan) weight(r *reference) int {
	if r.number == ondisk.NoBlock {
		return 1
	}
	return 1 + int(p.counts[r.number])
}

// inIndex is the form that the reference has in an index.
func (r *reference) inIndex() ondisk.IndexBlock {
	b := r.Index()
	if r.number == ondisk.NoBlock {
		b.File, b.Where = r.file.File, uint64(r.file.Piece.Where)
	}
	return b
}

// renumber makes the list of the ancestors that are used, the parent first where it is, and returns the new number of each of
// the parent's origins.
func (p *Plan) renumber(used []tables.AncestorShard) ([]uint32, error) {
	numbers := make([]uint32, len(p.records.ParentOrigins)+1)
	for _, at := range used {
		if numbers[at.Origin] > 0 {
			continue
		}
		o := image.Origin{ID: hex.EncodeToString(p.records.ParentID[:]), Path: p.records.ParentPath}
		if at.Origin > 0 {
			o = p.records.ParentOrigins[at.Origin-1]
			o.Path = rebase(o.Path, p.records.ParentPath)
		}
		p.Origins = append(p.Origins, o)
		numbers[at.Origin] = uint32(len(p.Origins))
	}
	if len(p.Origins) > math.MaxUint16 {
		return nil, fmt.Errorf("the checkpoint would refer to %d ancestors, and can refer to %d: make a full one, without a parent", len(p.Origins), math.MaxUint16)
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
