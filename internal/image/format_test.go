package image_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/reader"
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

// TestFormatAsDocumented walks a shard with nothing but what the package comment says of blocks.
func TestFormatAsDocumented(t *testing.T) {
	m := imagetest.SmallCheckpoint(t, 1, "none", imagetest.ID)
	shard := m.Files["img-0"]
	if string(shard[:8]) != "STASISSH" || !bytes.Equal(shard[24:40], imagetest.ID[:]) || binary.LittleEndian.Uint64(shard[56:]) != xxh3.Hash(shard[:56]) {
		t.Error("the header is not as documented")
	}
	footer := shard[len(shard)-64:]
	index := int(binary.LittleEndian.Uint64(footer[16:]))
	if string(footer[:8]) != "STASISSF" || index+int(binary.LittleEndian.Uint64(footer[24:]))+64 != len(shard) {
		t.Error("the footer is not as documented")
	}
	var got []string
	for at := 64; at < index; {
		b := shard[at:]
		extents, stored := int(binary.LittleEndian.Uint32(b[20:])), int(binary.LittleEndian.Uint32(b[32:]))
		head := (64 + 12*extents + 63) / 64 * 64
		end := head + (stored+63)/64*64
		sealed := bytes.Clone(b[:head])
		binary.LittleEndian.PutUint64(sealed[56:], xxh3.Hash(b[head:end]))
		if string(b[:4]) != "SBLK" || binary.LittleEndian.Uint64(b[48:]) != uint64(at) || binary.LittleEndian.Uint64(b[56:]) != xxh3.Hash(sealed) || !bytes.Equal(b[8:16], imagetest.ID[:8]) {
			t.Fatalf("the block at %d is not as documented", at)
		}
		line := fmt.Sprintf("kind %d owner %d raw %d:", b[4], binary.LittleEndian.Uint32(b[16:]), binary.LittleEndian.Uint32(b[36:]))
		for i := range extents {
			line += fmt.Sprintf(" %#x+%d", binary.LittleEndian.Uint64(b[64+12*i:]), binary.LittleEndian.Uint32(b[64+12*i+8:]))
		}
		got = append(got, line)
		at += end
	}
	want := []string{
		"kind 1 owner 7 raw 12288: 0x10000+2 0x40000+1",
		"kind 1 owner 7 raw 4096: 0x11000+1",
		"kind 1 owner 8 raw 4096: 0x20000+1",
		"kind 2 owner 0 raw 26:",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the blocks are\n%s\ninstead of\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// sealed makes a whole checkpoint of one shard out of an index, with right checksums and lengths.
func sealed(tb testing.TB, index []byte, blocks []byte, origins []image.Origin) *storetest.Memory {
	tb.Helper()
	shard := append(ondisk.Header{Shard: 0, Shards: 1, ID: imagetest.ID}.Encode(), blocks...)
	foot := ondisk.Footer{Shard: 0, IndexOffset: uint64(len(shard)), IndexStored: uint64(len(index)), IndexRaw: uint64(len(index)), IndexSum: xxh3.Hash(index), ID: ondisk.ShortID(imagetest.ID)}
	tail := append(slices.Clone(index), foot.Encode()...)
	shard = append(shard, tail...)
	m := imagetest.Manifest()
	m.Format, m.ID, m.Host.PageSize, m.Codec, m.Origins = image.FormatVersion, hex.EncodeToString(imagetest.ID[:]), image.PageSize, "none", origins
	m.Shards = []image.Shard{{Name: image.ShardName(0), Size: int64(len(shard)), Digest: image.HexSum(xxh3.Hash(tail))}}
	text, err := m.Encode()
	if err != nil {
		tb.Fatal(err)
	}
	out := storetest.NewMemory()
	w, err := out.Create("img-0")
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(shard); err != nil {
		tb.Fatal(err)
	}
	if err := w.Finish(); err != nil {
		tb.Fatal(err)
	}
	if err := out.Commit(text); err != nil {
		tb.Fatal(err)
	}
	return out
}

// TestIndexesThatMakeNoSense have right checksums, as only a mistake in a writer or a forger would make them.
func TestIndexesThatMakeNoSense(t *testing.T) {
	page := func(off int64, pieces ...ondisk.Piece) ondisk.Group {
		b := ondisk.IndexBlock{Off: off, Stored: image.PageSize, Raw: image.PageSize, Kind: ondisk.KindPages, Heads: 1, Pieces: uint32(len(pieces))}
		return ondisk.Group{Blocks: []ondisk.IndexBlock{b}, Pieces: pieces}
	}
	file := func(number uint32, where uint64) ondisk.Group {
		return ondisk.Group{Blocks: []ondisk.IndexBlock{{Off: image.ShardHeader, Stored: 10, Raw: 10, Kind: ondisk.KindFile, File: number, Where: where}}}
	}
	one := ondisk.Piece{Page: 16, Pages: 1}
	tests := []struct {
		name string
		x    ondisk.Index
		says string
	}{
		{"page twice", ondisk.Index{PIDs: []int{7}, Groups: []ondisk.Group{page(image.ShardHeader, one, one)}}, "twice"},
		{"page and zero page", ondisk.Index{PIDs: []int{7}, Zeros: []ondisk.ZeroRange{{Proc: 0, Page: 10, Pages: 20}}, Groups: []ondisk.Group{page(image.ShardHeader, one)}}, "twice"},
		{"zero page twice", ondisk.Index{PIDs: []int{7}, Zeros: []ondisk.ZeroRange{{Proc: 0, Page: 10, Pages: 20}, {Proc: 0, Page: 15, Pages: 1}}}, "twice"},
		{"block in the header", ondisk.Index{PIDs: []int{7}, Groups: []ondisk.Group{page(0, one)}}, "outside its shard"},
		{"block beyond the end", ondisk.Index{PIDs: []int{7}, Groups: []ondisk.Group{page(100*ondisk.Unit, one)}}, "outside its shard"},
		{"another shard", ondisk.Index{Groups: []ondisk.Group{{Shard: 3}}}, "outside its shard"},
		{"unknown ancestor", ondisk.Index{Groups: []ondisk.Group{{Origin: 1}}}, "ancestor"},
		{"unknown file", ondisk.Index{Groups: []ondisk.Group{file(0, 0)}}, "not listed"},
		{"gap in a file", ondisk.Index{Files: []image.FileInfo{{Name: "a", Size: 20}}, Groups: []ondisk.Group{file(0, 10)}}, "gap"},
		{"short file", ondisk.Index{Files: []image.FileInfo{{Name: "a", Size: 20}}, Groups: []ondisk.Group{file(0, 0)}}, "10 bytes instead of 20"},
		{"file twice", ondisk.Index{Files: []image.FileInfo{{Name: "a", Size: 0}, {Name: "a", Size: 0}}}, "there twice"},
		{"bad file name", ondisk.Index{Files: []image.FileInfo{{Name: "../a", Size: 0}}}, "file name"},
		{"no such process", ondisk.Index{PIDs: []int{7}, Zeros: []ondisk.ZeroRange{{Proc: 1, Page: 10, Pages: 20}}}, "process of zero pages"},
		{"page beyond the block", ondisk.Index{PIDs: []int{7}, Groups: []ondisk.Group{page(image.ShardHeader, ondisk.Piece{Page: 16, Pages: 1, First: 1})}}, "page of a block"},
		{"address beyond all", ondisk.Index{PIDs: []int{7}, Groups: []ondisk.Group{page(image.ShardHeader, ondisk.Piece{Page: image.MaxAddr/image.PageSize - 1, Pages: 2})}}, "address"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := reader.Open(sealed(t, test.x.Encode(), make([]byte, 128*ondisk.Unit), nil))
			imagetest.DamageIn(t, err, "img-0", 1<<30, test.name)
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("the error does not say %q: %v", test.says, err)
			}
		})
	}
}

// TestAncestors reads a checkpoint that has its memory in another one.
func TestAncestors(t *testing.T) {
	parentID := [16]byte{9, 9, 9}
	parent := imagetest.SmallCheckpoint(t, 2, "lz4", parentID)
	p := imagetest.Open(t, parent)
	// The child's index takes over the parent's blocks of process 7.
	x := ondisk.Index{PIDs: []int{7}}
	for i := range p.Blocks() {
		info, b := p.Block(i), p.BlockTable[i]
		if info.Pieces[0].PID != 7 {
			continue
		}
		g := ondisk.Group{Origin: 1, Shard: uint32(info.Shard)}
		g.Blocks = []ondisk.IndexBlock{{Off: b.Off, Sum: b.Sum, Stored: b.Stored, Raw: b.Raw, Kind: ondisk.KindPages, Codec: b.Codec, Heads: b.Heads, Pieces: uint32(len(info.Pieces))}}
		for _, piece := range info.Pieces {
			g.Pieces = append(g.Pieces, ondisk.Piece{Page: piece.Addr / image.PageSize, Pages: uint8(piece.Pages), First: uint8(piece.First)})
		}
		x.Groups = append(x.Groups, g)
	}
	child := sealed(t, x.Encode(), nil, []image.Origin{{ID: hex.EncodeToString(parentID[:]), Path: "../parent"}})
	c, err := reader.OpenChain(child, func(id [16]byte) (store.Source, error) {
		if id != parentID {
			return nil, fmt.Errorf("asked for %x", id)
		}
		return parent, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	checkBlocks(t, c, model{7: {0x10: 1, 0x11: 9, 0x40: 3}})
	if c.Block(0).Origin != 1 {
		t.Errorf("its origin is %d", c.Block(0).Origin)
	}
	// Without the ancestor, or with another one in its place, it is an error that names it.
	alone := imagetest.Open(t, child)
	if _, err := alone.ReadBlock(0, new(reader.Buffer)); err == nil || !strings.Contains(err.Error(), "../parent") {
		t.Errorf("without its ancestor: %v", err)
	}
	wrong, err := reader.OpenChain(child, func([16]byte) (store.Source, error) { return imagetest.SmallCheckpoint(t, 2, "lz4", imagetest.ID), nil })
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	_, err = wrong.ReadBlock(0, new(reader.Buffer))
	imagetest.DamageIn(t, err, image.ShardName(wrong.Block(0).Shard), 1<<30, "a wrong ancestor")
	if !strings.Contains(err.Error(), "../parent") {
		t.Errorf("the error does not name the ancestor: %v", err)
	}
}

func FuzzBlock(f *testing.F) {
	m := imagetest.SmallCheckpoint(f, 1, "lz4", imagetest.ID)
	f.Add(m.Files["img-0"][image.ShardHeader:])
	f.Add([]byte("SBLK"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, payload, err := ondisk.CheckBlock(b); err == nil {
			_ = codec.Decompress(codec.ID(b[5]), make([]byte, min(binary.LittleEndian.Uint32(b[36:]), image.MaxBlock)), payload)
		}
	})
}

// FuzzIndex opens checkpoints with arbitrary indexes whose checksums are right, and uses what opens.
func FuzzIndex(f *testing.F) {
	for _, codecName := range []string{"none", "gzip"} {
		shard := imagetest.SmallCheckpoint(f, 1, codecName, imagetest.ID).Files["img-0"]
		foot, err := ondisk.DecodeFooter(shard[len(shard)-image.ShardFooter:], int64(len(shard)))
		if err != nil {
			f.Fatal(err)
		}
		x := shard[foot.IndexOffset : len(shard)-image.ShardFooter]
		if foot.IndexStored != foot.IndexRaw {
			raw := make([]byte, foot.IndexRaw)
			if err := codec.Decompress(codec.Zstd, raw, x); err != nil {
				f.Fatal(err)
			}
			x = raw
		}
		f.Add(slices.Clone(x))
	}
	f.Add([]byte{1, 7, 0, 1, 0, 20, 4, 0})
	differences := ondisk.Index{PIDs: []int{7}, Groups: []ondisk.Group{{
		Blocks: []ondisk.IndexBlock{
			{Off: image.ShardHeader, Stored: 10, Raw: 10, Kind: ondisk.KindDifferences, Heads: 1, Pages: 2, Pieces: 1},
			{Off: image.ShardHeader + 4*ondisk.Unit, Stored: image.PageSize, Raw: image.PageSize, Kind: ondisk.KindPages, Heads: 1},
		},
		Pieces: []ondisk.Piece{{Page: 16, Pages: 2}}, Bases: []ondisk.Base{{Block: 1, Page: 0}, {Block: 1, Page: 0}},
	}}}
	f.Add(differences.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := ondisk.DecodeIndex(b)
		if err == nil {
			if again, err := ondisk.DecodeIndex(x.Encode()); err != nil || fmt.Sprint(again) != fmt.Sprint(x) {
				t.Fatalf("it does not survive: %v, %v, %v", x, again, err)
			}
		}
		c, err := reader.Open(sealed(t, b, make([]byte, 128*ondisk.Unit), []image.Origin{{ID: hex.EncodeToString(imagetest.ID[:])}}))
		if err != nil {
			return
		}
		defer c.Close()
		for i := range c.Blocks() {
			for _, p := range c.Block(i).Pieces {
				if block, page, kind := c.Find(p.PID, p.Addr); kind != image.Data || block != i || page != p.First {
					t.Fatalf("%+v is not found: block %d, page %d, kind %d", p, block, page, kind)
				}
			}
			if _, err := c.ReadBlock(i, new(reader.Buffer)); err == nil {
				t.Fatal("a block of nothing but zeros was read")
			}
		}
		for _, pid := range c.PIDs() {
			_ = c.Ranges(pid)
		}
	})
}
