package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"sync"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/delta"
	"stasis/internal/image/families"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
)

// TestDifferencesAreSmall changes a few bytes in many pages, several times. All differences must be from the first checkpoint.
func TestDifferencesAreSmall(t *testing.T) {
	const pages = 300
	c := imagetest.Counters(t, pages, 4, writer.Options{Shards: 2})
	for i := range c {
		p := c.Open(t, i)
		imagetest.CheckMemory(t, p, c[i].Content)
		imagetest.CheckOrigins(t, c, i, p)
		imagetest.CheckUses(t, p)
		f, size := p.Manifest().Figures, blocksSize(t, p)
		if i == 0 {
			if f.BytesDelta != 0 || p.Manifest().Format != image.PlainVersion {
				t.Errorf("figures of the first are %+v, its format is %d", f, p.Manifest().Format)
			}
			continue
		}
		if f.BytesDelta != pages*image.PageSize || size > pages*image.PageSize/50 || f.BytesDeltaUsed > size || f.BytesReferenced != 0 {
			t.Errorf("checkpoint %d takes %d bytes; figures are %+v", i, size, f)
		}
		if m := p.Manifest(); m.Format != image.FormatVersion || len(m.Origins) != 1 || m.Origins[0].Path != "../c0" {
			t.Errorf("checkpoint %d is of format %d, its origins are %+v", i, m.Format, m.Origins)
		}
		needed := 0
		for _, u := range p.Uses() {
			if u.Origin == 1 && !u.File {
				needed += bits.OnesCount64(u.Pages)
			}
		}
		if needed != pages {
			t.Errorf("checkpoint %d needs %d pages of the first", i, needed)
		}
	}
	without := imagetest.Counters(t, pages, 2, writer.Options{NoDelta: true}).Open(t, 1)
	if m := without.Manifest(); m.Figures.BytesDelta != 0 || m.Format != image.PlainVersion || blocksSize(t, without) < pages*image.PageSize {
		t.Errorf("without differences it has %+v", m.Figures)
	}
}

// TestDifferenceThatGoesBack makes a page again what it was two checkpoints before, and another one all different.
func TestDifferenceThatGoesBack(t *testing.T) {
	c := imagetest.Counters(t, 3, 2, writer.Options{})
	want := c[1].Content.Clone()
	want.Set(7, 64, c[0].Content[7][64])
	want.Set(7, 65, imagetest.Tagged(1, 1))
	c.Add(t, writer.Options{}, image.KindFull, want, want.Present(), func(w *writer.Writer) {
		imagetest.Put(t, w, 0, 7, append(bytes.Clone(want[7][64]), want[7][65]...), image.Extent{Addr: 64 * image.PageSize, Pages: 2})
	})
	p := c.Open(t, 2)
	imagetest.CheckMemory(t, p, want)
	if f := p.Manifest().Figures; f.BytesReferenced != 2*image.PageSize || f.BytesDelta != 0 || blocksSize(t, p) != ondisk.BlockLen(1, image.PageSize) {
		t.Errorf("figures are %+v", f)
	}
	if m := p.Manifest(); len(m.Origins) != 2 || m.Format != image.FormatVersion {
		t.Errorf("its format is %d, its origins are %v", m.Format, m.Origins)
	}
}

// useOf opens a checkpoint of a chain and reads all of it, by Verify and block by block.
func useOf(c imagetest.Chain, i int) error {
	p, err := reader.OpenChain(c[i].Memory, c.Resolve)
	if err != nil {
		return err
	}
	err = p.Verify(context.Background(), 1, nil)
	read := error(nil)
	for i := range p.Blocks() {
		_, e := p.ReadBlock(i, new(reader.Buffer))
		read = errors.Join(read, e)
	}
	whole := error(nil)
	for f, i := families.Of(p), 0; i < f.Blocks(); i++ {
		_, e := f.ReadBlock(i, new(reader.Buffer))
		whole = errors.Join(whole, e)
	}
	if (whole == nil) != (read == nil) {
		return fmt.Errorf("reading blocks says %w, reading families says %w", read, whole)
	}
	if (err == nil) != (read == nil) && len(p.FileTable) == 0 {
		return fmt.Errorf("verify says %w, reading says %w", err, read)
	}
	return errors.Join(err, p.Close())
}

// TestEveryFlippedBitInAChainIsFound flips bits in blocks of differences, in their index, and in what they differ from.
func TestEveryFlippedBitInAChainIsFound(t *testing.T) {
	for _, codecName := range []string{"none", "zstd"} {
		c := imagetest.Counters(t, 3, 3, writer.Options{Codec: imagetest.NewCodec(t, codecName)})
		top := c.Open(t, 2)
		flip := func(file []byte, i int, name string) {
			file[i] ^= 1 << (i % 8)
			imagetest.DamageIn(t, useOf(c, 2), name, i, "a flipped bit")
			file[i] ^= 1 << (i % 8)
		}
		for i := range c[2].Files["img-0"] {
			flip(c[2].Files["img-0"], i, "img-0")
		}
		ancestors := 0
		for _, u := range top.Uses() {
			if u.Origin == 0 {
				continue
			}
			for i := u.Offset; i < u.Offset+u.Len; i += 1 + u.Len/500 {
				flip(c[0].Files["img-0"], int(i), "img-0")
				ancestors++
			}
		}
		if err := useOf(c, 2); err != nil || ancestors < 100 {
			t.Fatalf("%d places of ancestors: %v", ancestors, err)
		}
	}
}

// TestBasesThatMakeNoSense have right checksums.
func TestBasesThatMakeNoSense(t *testing.T) {
	delta := ondisk.IndexBlock{Off: image.ShardHeader, Stored: 10, Raw: 10, Kind: ondisk.KindDifferences, Heads: 1, Pages: 2, Pieces: 1}
	full := ondisk.IndexBlock{Off: image.ShardHeader + 2*ondisk.Unit + ondisk.Unit, Stored: image.PageSize, Raw: image.PageSize, Kind: ondisk.KindPages, Heads: 1, Pages: 1}
	file := ondisk.IndexBlock{Off: full.Off, Stored: 10, Raw: 10, Kind: ondisk.KindFile}
	piece := []ondisk.Piece{{Page: 16, Pages: 1}}
	make1 := func(blocks []ondisk.IndexBlock, bases ...ondisk.Base) ondisk.Index {
		return ondisk.Index{PIDs: []int{7}, Groups: []ondisk.Group{{Blocks: blocks, Pieces: piece, Bases: bases}}}
	}
	tests := []struct {
		name string
		x    ondisk.Index
		says string
	}{
		{"no such block", make1([]ondisk.IndexBlock{delta, full}, ondisk.Base{Block: 2, Page: 0}), "not there"},
		{"a file", make1([]ondisk.IndexBlock{delta, file}, ondisk.Base{Block: 1, Page: 0}), "not"},
		{"itself", make1([]ondisk.IndexBlock{delta}, ondisk.Base{Block: 0, Page: 0}), "from no page"},
		{"no such page", make1([]ondisk.IndexBlock{delta, full}, ondisk.Base{Block: 1, Page: 1}), "from no page"},
		{"no base", make1([]ondisk.IndexBlock{delta, full}), "bases"},
		{"a block without pieces", ondisk.Index{PIDs: []int{7}, Groups: []ondisk.Group{{Blocks: []ondisk.IndexBlock{full}}}}, "nobody needs"},
		{"more extents than pages", make1([]ondisk.IndexBlock{{Off: image.ShardHeader, Stored: 10, Raw: 10, Kind: ondisk.KindDifferences, Heads: 3, Pages: 2, Pieces: 1}, full}, ondisk.Base{Block: 1, Page: 0}), "block"},
		{"page beyond the block", ondisk.Index{PIDs: []int{7}, Groups: []ondisk.Group{{Blocks: []ondisk.IndexBlock{delta, full}, Pieces: []ondisk.Piece{{Page: 16, Pages: 1, First: 2}}}}}, "page of a block"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := reader.Open(sealed(t, test.x.Encode(), make([]byte, 256*ondisk.Unit), nil))
			imagetest.DamageIn(t, err, "img-0", 1<<30, test.name)
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("the error does not say %q: %v", test.says, err)
			}
		})
	}
	good := make1([]ondisk.IndexBlock{delta, full}, ondisk.Base{Block: 1, Page: 0})
	c := imagetest.Open(t, sealed(t, good.Encode(), make([]byte, 256*ondisk.Unit), nil))
	if c.Blocks() != 1 || !c.Block(0).Delta || c.Block(0).Raw != 2*image.PageSize {
		t.Errorf("it has %d blocks, the first is %+v", c.Blocks(), c.Block(0))
	}
}

// TestChainFromManyGoroutines writes a checkpoint on a parent from several goroutines, and reads it from several.
func TestChainFromManyGoroutines(t *testing.T) {
	const workers, pages = 4, 600
	for _, codecName := range []string{"none", "lz4"} {
		o := writer.Options{Shards: 3, Codec: imagetest.NewCodec(t, codecName)}
		c := imagetest.Counters(t, pages, 2, o)
		want := c[1].Content.Clone()
		for page := range uint64(pages) {
			if page%3 > 0 {
				changed := bytes.Clone(want[7][64+page])
				binary.LittleEndian.PutUint64(changed[page:], page)
				want.Set(7, 64+page, changed)
			}
		}
		c.Add(t, o, image.KindFull, want, want.Present(), func(w *writer.Writer) {
			var crew sync.WaitGroup
			errs := make([]error, workers)
			for k := range workers {
				crew.Go(func() {
					for page := uint64(64 + k); page < 64+pages; page += workers {
						errs[k] = errors.Join(errs[k], w.PutPages(0, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: page * image.PageSize, Pages: 1}}, Data: want[7][page]}))
					}
				})
			}
			crew.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
		})
		p := c.Open(t, 2)
		imagetest.CheckMemory(t, p, want)
		if f := p.Manifest().Figures; f.BytesReferenced < pages/3*image.PageSize || f.BytesDelta < pages/3*image.PageSize {
			t.Errorf("figures are %+v", f)
		}
		var crew sync.WaitGroup
		errs := make([]error, workers)
		for k := range workers {
			crew.Go(func() {
				var b reader.Buffer
				for n := range p.Blocks() {
					data, err := p.ReadBlock((n+k*p.Blocks()/workers)%p.Blocks(), &b)
					if err != nil || len(data) == 0 {
						errs[k] = errors.Join(errs[k], err)
					}
				}
				errs[k] = errors.Join(errs[k], p.Verify(context.Background(), 1, nil))
			})
		}
		crew.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDifferencesFarApart changes one page of each of many blocks: few blocks must be read to read any of the differences.
func TestDifferencesFarApart(t *testing.T) {
	const blocks = 2*delta.MaxBases + 3
	var c imagetest.Chain
	data := imagetest.Noise(blocks * 4 * image.PageSize)
	present := map[int][]image.Range{7: {imagetest.PagesOf(0, blocks*4)}}
	c.Add(t, writer.Options{}, image.KindFull, imagetest.WithPages(7, 0, bytes.Clone(data)), present, func(w *writer.Writer) {
		for i := range uint64(blocks) {
			imagetest.Put(t, w, 0, 7, data[i*4*image.PageSize:(i+1)*4*image.PageSize], image.Extent{Addr: i * 4 * image.PageSize, Pages: 4})
		}
	})
	want := c[0].Content.Clone()
	var extents []image.Extent
	var changed []byte
	for i := range uint64(blocks) {
		page := bytes.Clone(want[7][i*4])
		page[i]++
		want.Set(7, i*4, page)
		extents, changed = append(extents, image.Extent{Addr: i * 4 * image.PageSize, Pages: 1}), append(changed, page...)
	}
	c.Add(t, writer.Options{}, image.KindFull, want, present, func(w *writer.Writer) { imagetest.Put(t, w, 0, 7, changed, extents...) })
	p := c.Open(t, 1)
	imagetest.CheckMemory(t, p, want)
	deltas := 0
	for i := range p.Blocks() {
		if p.Block(i).Delta {
			deltas++
			if n := len(p.Block(i).Pieces); n > delta.MaxBases {
				t.Errorf("a block has %d pages", n)
			}
		}
	}
	if deltas != 3 {
		t.Errorf("there are %d blocks of differences", deltas)
	}
}
