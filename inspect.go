package stasis

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"stasis/internal/chain"
	"stasis/internal/image/reader"
)

// Inspection tells what is in a checkpoint. Sizes are in bytes.
type Inspection struct {
	Dir      string      `json:"dir"` // absolute
	Manifest *Manifest   `json:"manifest"`
	Shards   []ShardUse  `json:"shards"`
	Codecs   []CodecUse  `json:"codecs"` // of the blocks of memory, by name
	Files    []StateFile `json:"files"`  // CRIU's images
}

// ShardUse says what is in a shard.
type ShardUse struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // of the file
	Blocks int    `json:"blocks"` // of memory, that are still wanted
	Raw    int64  `json:"raw"`    // size of these before compression
	Stored int64  `json:"stored"` // and after
}

// CodecUse says how many blocks have a codec.
type CodecUse struct {
	Codec  string `json:"codec"`
	Blocks int    `json:"blocks"`
	Raw    int64  `json:"raw"`    // their size before compression
	Stored int64  `json:"stored"` // and after
}

// StateFile is one of CRIU's images in a checkpoint.
type StateFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// Inspect tells what is in the checkpoint, or pre-dump, in a folder. It reads
// the manifest and the index alone, whatever the size, and works on one that was
// deduplicated too. The error wraps ErrInput where there is no checkpoint, or
// ErrDamaged.
func Inspect(ctx context.Context, dir string) (*Inspection, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	checkpoint, err := chain.OpenIndex(dir)
	if err != nil {
		return nil, ofKind(kindOfFinding(err), err)
	}
	defer checkpoint.Close()
	found := sumUp(checkpoint)
	if found.Dir, err = filepath.Abs(dir); err != nil {
		found.Dir = dir
	}
	return found, nil
}

// sumUp sums the index of a checkpoint up.
func sumUp(c *reader.Checkpoint) *Inspection {
	found := &Inspection{Manifest: c.Manifest()}
	for _, s := range found.Manifest.Shards {
		found.Shards = append(found.Shards, ShardUse{Name: s.Name, Size: s.Size})
	}
	codecs := make(map[string]*CodecUse)
	for i := range c.Blocks() {
		b := c.Block(i)
		name := b.Codec.String()
		use := codecs[name]
		if use == nil {
			use = &CodecUse{Codec: name}
			codecs[name] = use
		}
		use.Blocks++
		use.Raw += int64(b.Raw)
		use.Stored += int64(b.Stored)
		if b.Origin == 0 && b.Shard < len(found.Shards) {
			shard := &found.Shards[b.Shard]
			shard.Blocks++
			shard.Raw += int64(b.Raw)
			shard.Stored += int64(b.Stored)
		}
	}
	for _, use := range codecs {
		found.Codecs = append(found.Codecs, *use)
	}
	slices.SortFunc(found.Codecs, func(a, b CodecUse) int { return strings.Compare(a.Codec, b.Codec) })
	for _, f := range c.Files() {
		found.Files = append(found.Files, StateFile{f.Name, f.Size})
	}
	return found
}
