package image

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
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

// TestFormatAsDocumented walks a shard with nothing but what the package comment says of blocks.
func TestFormatAsDocumented(t *testing.T) {
	m := smallCheckpoint(t, 1, "none", testID)
	shard := m.Files["img-0"]
	if string(shard[:8]) != "STASISSH" || !bytes.Equal(shard[24:40], testID[:]) || binary.LittleEndian.Uint64(shard[56:]) != xxh3.Hash(shard[:56]) {
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
		if string(b[:4]) != "SBLK" || binary.LittleEndian.Uint64(b[48:]) != uint64(at) || binary.LittleEndian.Uint64(b[56:]) != xxh3.Hash(sealed) || !bytes.Equal(b[8:16], testID[:8]) {
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
func sealed(tb testing.TB, index []byte, blocks []byte, origins []Origin) *storetest.Memory {
	tb.Helper()
	shard := append(header{0, 1, testID}.encode(), blocks...)
	foot := footer{0, uint64(len(shard)), uint64(len(index)), uint64(len(index)), xxh3.Hash(index), shortID(testID)}
	tail := append(slices.Clone(index), foot.encode()...)
	shard = append(shard, tail...)
	m := testManifest()
	m.Format, m.ID, m.Host.PageSize, m.Codec, m.Origins = FormatVersion, hex.EncodeToString(testID[:]), PageSize, "none", origins
	m.Shards = []Shard{{ShardName(0), int64(len(shard)), hexSum(xxh3.Hash(tail))}}
	text, err := m.encode()
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
	page := func(off int64, pieces ...extent) group {
		b := indexBlock{off: off, stored: PageSize, raw: PageSize, kind: pageBlock, heads: 1, pieces: uint32(len(pieces))}
		return group{blocks: []indexBlock{b}, pieces: pieces}
	}
	file := func(number uint32, where uint64) group {
		return group{blocks: []indexBlock{{off: ShardHeader, stored: 10, raw: 10, kind: fileBlock, file: number, where: where}}}
	}
	one := extent{page: 16, pages: 1}
	tests := []struct {
		name string
		x    index
		says string
	}{
		{"page twice", index{pids: []int{7}, groups: []group{page(ShardHeader, one, one)}}, "twice"},
		{"page and zero page", index{pids: []int{7}, zeros: []zeroRange{{0, 10, 20}}, groups: []group{page(ShardHeader, one)}}, "twice"},
		{"zero page twice", index{pids: []int{7}, zeros: []zeroRange{{0, 10, 20}, {0, 15, 1}}}, "twice"},
		{"block in the header", index{pids: []int{7}, groups: []group{page(0, one)}}, "outside its shard"},
		{"block beyond the end", index{pids: []int{7}, groups: []group{page(100*unit, one)}}, "outside its shard"},
		{"another shard", index{groups: []group{{shard: 3}}}, "outside its shard"},
		{"unknown ancestor", index{groups: []group{{origin: 1}}}, "ancestor"},
		{"unknown file", index{groups: []group{file(0, 0)}}, "not listed"},
		{"gap in a file", index{files: []FileInfo{{"a", 20}}, groups: []group{file(0, 10)}}, "gap"},
		{"short file", index{files: []FileInfo{{"a", 20}}, groups: []group{file(0, 0)}}, "10 bytes instead of 20"},
		{"file twice", index{files: []FileInfo{{"a", 0}, {"a", 0}}}, "there twice"},
		{"bad file name", index{files: []FileInfo{{"../a", 0}}}, "file name"},
		{"no such process", index{pids: []int{7}, zeros: []zeroRange{{1, 10, 20}}}, "process of zero pages"},
		{"page beyond the block", index{pids: []int{7}, groups: []group{page(ShardHeader, extent{page: 16, pages: 1, first: 1})}}, "page of a block"},
		{"address beyond all", index{pids: []int{7}, groups: []group{page(ShardHeader, extent{page: maxAddr/PageSize - 1, pages: 2})}}, "address"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Open(sealed(t, test.x.encode(), make([]byte, 128*unit), nil))
			damageIn(t, err, "img-0", 1<<30, test.name)
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("the error does not say %q: %v", test.says, err)
			}
		})
	}
}

// TestAncestors reads a checkpoint that has its memory in another one.
func TestAncestors(t *testing.T) {
	parentID := [16]byte{9, 9, 9}
	parent := smallCheckpoint(t, 2, "lz4", parentID)
	p := open(t, parent)
	// The child's index takes over the parent's blocks of process 7.
	x := index{pids: []int{7}}
	for i := range p.Blocks() {
		info, b := p.Block(i), p.blocks[i]
		if info.Pieces[0].PID != 7 {
			continue
		}
		g := group{origin: 1, shard: uint32(info.Shard)}
		g.blocks = []indexBlock{{off: b.off, sum: b.sum, stored: b.stored, raw: b.raw, kind: pageBlock, codec: b.codec, heads: b.heads, pieces: uint32(len(info.Pieces))}}
		for _, piece := range info.Pieces {
			g.pieces = append(g.pieces, extent{page: piece.Addr / PageSize, pages: uint8(piece.Pages), first: uint8(piece.First)})
		}
		x.groups = append(x.groups, g)
	}
	child := sealed(t, x.encode(), nil, []Origin{{ID: hex.EncodeToString(parentID[:]), Path: "../parent"}})
	c, err := OpenChain(child, func(id [16]byte) (store.Source, error) {
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
	alone := open(t, child)
	if _, err := alone.ReadBlock(0, new(Buffer)); err == nil || !strings.Contains(err.Error(), "../parent") {
		t.Errorf("without its ancestor: %v", err)
	}
	wrong, err := OpenChain(child, func([16]byte) (store.Source, error) { return smallCheckpoint(t, 2, "lz4", testID), nil })
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	_, err = wrong.ReadBlock(0, new(Buffer))
	damageIn(t, err, ShardName(wrong.Block(0).Shard), 1<<30, "a wrong ancestor")
	if !strings.Contains(err.Error(), "../parent") {
		t.Errorf("the error does not name the ancestor: %v", err)
	}
}

func FuzzBlock(f *testing.F) {
	m := smallCheckpoint(f, 1, "lz4", testID)
	f.Add(m.Files["img-0"][ShardHeader:])
	f.Add([]byte("SBLK"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, payload, err := checkBlock(b); err == nil {
			_ = codec.Decompress(codec.ID(b[5]), make([]byte, min(binary.LittleEndian.Uint32(b[36:]), MaxBlock)), payload)
		}
	})
}

// FuzzIndex opens checkpoints with arbitrary indexes whose checksums are right, and uses what opens.
func FuzzIndex(f *testing.F) {
	for _, codecName := range []string{"none", "gzip"} {
		shard := smallCheckpoint(f, 1, codecName, testID).Files["img-0"]
		foot, err := decodeFooter(shard[len(shard)-ShardFooter:], int64(len(shard)))
		if err != nil {
			f.Fatal(err)
		}
		x := shard[foot.indexOffset : len(shard)-ShardFooter]
		if foot.indexStored != foot.indexRaw {
			raw := make([]byte, foot.indexRaw)
			if err := codec.Decompress(codec.Zstd, raw, x); err != nil {
				f.Fatal(err)
			}
			x = raw
		}
		f.Add(slices.Clone(x))
	}
	f.Add([]byte{1, 7, 0, 1, 0, 20, 4, 0})
	differences := index{pids: []int{7}, groups: []group{{
		blocks: []indexBlock{
			{off: ShardHeader, stored: 10, raw: 10, kind: deltaBlock, heads: 1, pages: 2, pieces: 1},
			{off: ShardHeader + 4*unit, stored: PageSize, raw: PageSize, kind: pageBlock, heads: 1},
		},
		pieces: []extent{{page: 16, pages: 2}}, bases: []base{{1, 0}, {1, 0}},
	}}}
	f.Add(differences.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := decodeIndex(b)
		if err == nil {
			if again, err := decodeIndex(x.encode()); err != nil || fmt.Sprint(again) != fmt.Sprint(x) {
				t.Fatalf("it does not survive: %v, %v, %v", x, again, err)
			}
		}
		c, err := Open(sealed(t, b, make([]byte, 128*unit), []Origin{{ID: hex.EncodeToString(testID[:])}}))
		if err != nil {
			return
		}
		defer c.Close()
		for i := range c.Blocks() {
			for _, p := range c.Block(i).Pieces {
				if block, page, kind := c.Find(p.PID, p.Addr); kind != Data || block != i || page != p.First {
					t.Fatalf("%+v is not found: block %d, page %d, kind %d", p, block, page, kind)
				}
			}
			if _, err := c.ReadBlock(i, new(Buffer)); err == nil {
				t.Fatal("a block of nothing but zeros was read")
			}
		}
		for _, pid := range c.PIDs() {
			_ = c.Ranges(pid)
		}
	})
}
