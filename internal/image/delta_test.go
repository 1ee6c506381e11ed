package image

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
)

// TestDifferencesAreSmall changes a few bytes in many pages, several times. All differences must be from the first checkpoint.
func TestDifferencesAreSmall(t *testing.T) {
	const pages = 300
	c := counters(t, pages, 4, WriterOptions{Shards: 2})
	for i := range c {
		p := c.open(t, i)
		checkMemory(t, p, c[i].memory)
		checkOrigins(t, c, i, p)
		checkUses(t, p)
		f, size := p.Manifest().Figures, blocksSize(t, p)
		if i == 0 {
			if f.BytesDelta != 0 || p.Manifest().Format != plainVersion {
				t.Errorf("figures of the first are %+v, its format is %d", f, p.Manifest().Format)
			}
			continue
		}
		if f.BytesDelta != pages*PageSize || size > pages*PageSize/50 || f.BytesDeltaUsed > size || f.BytesReferenced != 0 {
			t.Errorf("checkpoint %d takes %d bytes; figures are %+v", i, size, f)
		}
		if m := p.Manifest(); m.Format != FormatVersion || len(m.Origins) != 1 || m.Origins[0].Path != "../c0" {
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
	without := counters(t, pages, 2, WriterOptions{NoDelta: true}).open(t, 1)
	if m := without.Manifest(); m.Figures.BytesDelta != 0 || m.Format != plainVersion || blocksSize(t, without) < pages*PageSize {
		t.Errorf("without differences it has %+v", m.Figures)
	}
}

// TestDifferenceThatGoesBack makes a page again what it was two checkpoints before, and another one all different.
func TestDifferenceThatGoesBack(t *testing.T) {
	c := counters(t, 3, 2, WriterOptions{})
	want := c[1].memory.clone()
	want.set(7, 64, c[0].memory[7][64])
	want.set(7, 65, tagged(1, 1))
	c.add(t, WriterOptions{}, KindFull, want, want.present(), func(w *Writer) {
		put(t, w, 0, 7, append(bytes.Clone(want[7][64]), want[7][65]...), Extent{64 * PageSize, 2})
	})
	p := c.open(t, 2)
	checkMemory(t, p, want)
	if f := p.Manifest().Figures; f.BytesReferenced != 2*PageSize || f.BytesDelta != 0 || blocksSize(t, p) != blockLen(1, PageSize) {
		t.Errorf("figures are %+v", f)
	}
	if m := p.Manifest(); len(m.Origins) != 2 || m.Format != FormatVersion {
		t.Errorf("its format is %d, its origins are %v", m.Format, m.Origins)
	}
}

// useChain opens a checkpoint of a chain and reads all of it, by Verify and block by block.
func (c chain) use(i int) error {
	p, err := OpenChain(c[i].Memory, c.resolve)
	if err != nil {
		return err
	}
	err = p.Verify(context.Background(), 1, nil)
	read := error(nil)
	for i := range p.Blocks() {
		_, e := p.ReadBlock(i, new(Buffer))
		read = errors.Join(read, e)
	}
	whole := error(nil)
	for f, i := FamiliesOf(p), 0; i < f.Blocks(); i++ {
		_, e := f.ReadBlock(i, new(Buffer))
		whole = errors.Join(whole, e)
	}
	if (whole == nil) != (read == nil) {
		return fmt.Errorf("reading blocks says %w, reading families says %w", read, whole)
	}
	if (err == nil) != (read == nil) && len(p.files) == 0 {
		return fmt.Errorf("verify says %w, reading says %w", err, read)
	}
	return errors.Join(err, p.Close())
}

// TestEveryFlippedBitInAChainIsFound flips bits in blocks of differences, in their index, and in what they differ from.
func TestEveryFlippedBitInAChainIsFound(t *testing.T) {
	for _, codecName := range []string{"none", "zstd"} {
		c := counters(t, 3, 3, WriterOptions{Codec: newCodec(t, codecName)})
		top := c.open(t, 2)
		flip := func(file []byte, i int, name string) {
			file[i] ^= 1 << (i % 8)
			damageIn(t, c.use(2), name, i, "a flipped bit")
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
		if err := c.use(2); err != nil || ancestors < 100 {
			t.Fatalf("%d places of ancestors: %v", ancestors, err)
		}
	}
}

// TestBasesThatMakeNoSense have right checksums.
func TestBasesThatMakeNoSense(t *testing.T) {
	delta := indexBlock{off: ShardHeader, stored: 10, raw: 10, kind: deltaBlock, heads: 1, pages: 2, pieces: 1}
	full := indexBlock{off: ShardHeader + 2*unit + unit, stored: PageSize, raw: PageSize, kind: pageBlock, heads: 1, pages: 1}
	file := indexBlock{off: full.off, stored: 10, raw: 10, kind: fileBlock}
	piece := []extent{{page: 16, pages: 1}}
	make1 := func(blocks []indexBlock, bases ...base) index {
		return index{pids: []int{7}, groups: []group{{blocks: blocks, pieces: piece, bases: bases}}}
	}
	tests := []struct {
		name string
		x    index
		says string
	}{
		{"no such block", make1([]indexBlock{delta, full}, base{2, 0}), "not there"},
		{"a file", make1([]indexBlock{delta, file}, base{1, 0}), "not"},
		{"itself", make1([]indexBlock{delta}, base{0, 0}), "from no page"},
		{"no such page", make1([]indexBlock{delta, full}, base{1, 1}), "from no page"},
		{"no base", make1([]indexBlock{delta, full}), "bases"},
		{"a block without pieces", index{pids: []int{7}, groups: []group{{blocks: []indexBlock{full}}}}, "nobody needs"},
		{"more extents than pages", make1([]indexBlock{{off: ShardHeader, stored: 10, raw: 10, kind: deltaBlock, heads: 3, pages: 2, pieces: 1}, full}, base{1, 0}), "block"},
		{"page beyond the block", index{pids: []int{7}, groups: []group{{blocks: []indexBlock{delta, full}, pieces: []extent{{page: 16, pages: 1, first: 2}}}}}, "page of a block"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Open(sealed(t, test.x.encode(), make([]byte, 256*unit), nil))
			damageIn(t, err, "img-0", 1<<30, test.name)
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("the error does not say %q: %v", test.says, err)
			}
		})
	}
	good := make1([]indexBlock{delta, full}, base{1, 0})
	c := open(t, sealed(t, good.encode(), make([]byte, 256*unit), nil))
	if c.Blocks() != 1 || !c.Block(0).Delta || c.Block(0).Raw != 2*PageSize {
		t.Errorf("it has %d blocks, the first is %+v", c.Blocks(), c.Block(0))
	}
}

// TestChainFromManyGoroutines writes a checkpoint on a parent from several goroutines, and reads it from several.
func TestChainFromManyGoroutines(t *testing.T) {
	const workers, pages = 4, 600
	for _, codecName := range []string{"none", "lz4"} {
		o := WriterOptions{Shards: 3, Codec: newCodec(t, codecName)}
		c := counters(t, pages, 2, o)
		want := c[1].memory.clone()
		for page := range uint64(pages) {
			if page%3 > 0 {
				changed := bytes.Clone(want[7][64+page])
				binary.LittleEndian.PutUint64(changed[page:], page)
				want.set(7, 64+page, changed)
			}
		}
		c.add(t, o, KindFull, want, want.present(), func(w *Writer) {
			var crew sync.WaitGroup
			errs := make([]error, workers)
			for k := range workers {
				crew.Go(func() {
					for page := uint64(64 + k); page < 64+pages; page += workers {
						errs[k] = errors.Join(errs[k], w.PutPages(0, PageBlock{7, []Extent{{page * PageSize, 1}}, want[7][page]}))
					}
				})
			}
			crew.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
		})
		p := c.open(t, 2)
		checkMemory(t, p, want)
		if f := p.Manifest().Figures; f.BytesReferenced < pages/3*PageSize || f.BytesDelta < pages/3*PageSize {
			t.Errorf("figures are %+v", f)
		}
		var crew sync.WaitGroup
		errs := make([]error, workers)
		for k := range workers {
			crew.Go(func() {
				var b Buffer
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
	const blocks = 2*maxBases + 3
	var c chain
	data := noise(blocks * 4 * PageSize)
	present := map[int][]Range{7: {pagesOf(0, blocks*4)}}
	c.add(t, WriterOptions{}, KindFull, withPages(7, 0, bytes.Clone(data)), present, func(w *Writer) {
		for i := range uint64(blocks) {
			put(t, w, 0, 7, data[i*4*PageSize:(i+1)*4*PageSize], Extent{i * 4 * PageSize, 4})
		}
	})
	want := c[0].memory.clone()
	var extents []Extent
	var changed []byte
	for i := range uint64(blocks) {
		page := bytes.Clone(want[7][i*4])
		page[i]++
		want.set(7, i*4, page)
		extents, changed = append(extents, Extent{i * 4 * PageSize, 1}), append(changed, page...)
	}
	c.add(t, WriterOptions{}, KindFull, want, present, func(w *Writer) { put(t, w, 0, 7, changed, extents...) })
	p := c.open(t, 1)
	checkMemory(t, p, want)
	deltas := 0
	for i := range p.Blocks() {
		if p.Block(i).Delta {
			deltas++
			if n := len(p.Block(i).Pieces); n > maxBases {
				t.Errorf("a block has %d pages", n)
			}
		}
	}
	if deltas != 3 {
		t.Errorf("there are %d blocks of differences", deltas)
	}
}
