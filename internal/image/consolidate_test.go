package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"testing"
)

// scribbled makes a chain in which each checkpoint changes some pages a little and rewrites a few, and returns what all of them but
// the first take in their shards without the index, in bytes.
func scribbled(t *testing.T, depth, maxOrigins int) (chain, int64) {
	t.Helper()
	const pages, little, whole = 640, 16, 2
	r := rand.New(rand.NewPCG(5, 6))
	now := memory{7: {}}
	for page := range uint64(pages) {
		now[7][page] = tagged(page+1, 1)
	}
	var c chain
	stored := int64(0)
	for i := range depth {
		now = now.clone()
		o := WriterOptions{Shards: 2, Codec: newCodec(t, "lz4"), MaxOrigins: maxOrigins}
		c.add(t, o, KindFull, now, now.present(), func(w *Writer) {
			for n := range uint64(pages) {
				switch {
				case i == 0:
				case n < little:
					page := r.Uint64N(pages)
					now[7][page] = bytes.Clone(now[7][page])
					binary.LittleEndian.PutUint64(now[7][page][8*r.IntN(PageSize/8):], r.Uint64())
					n = page
				case n < little+whole:
					n = r.Uint64N(pages)
					now[7][n] = tagged(r.Uint64(), 1)
				default:
					return
				}
				put(t, w, 0, 7, now[7][n], Extent{n * PageSize, 1})
			}
		})
		if p := c.open(t, i); i > 0 {
			_, own := p.wanted()
			stored += own
		}
	}
	return c, stored
}

// TestLongChainsReferToFew: at any depth a checkpoint needs few ancestors, what it takes is little more than without that limit, and all
// of them have what they must.
func TestLongChainsReferToFew(t *testing.T) {
	const depth = 70
	_, free := scribbled(t, depth, depth)
	c, stored := scribbled(t, depth, 0)
	most := 0
	for i := range c {
		p := c.open(t, i)
		most = max(most, len(p.Manifest().Origins))
		if i%9 == 0 || i == depth-1 {
			checkMemory(t, p, c[i].memory)
			if err := p.Verify(context.Background(), 2, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if most > MaxOrigins || most < MaxOrigins/2 {
		t.Errorf("a checkpoint refers to %d ancestors, and may to %d", most, MaxOrigins)
	}
	t.Logf("the checkpoints take %d bytes, and %d without a limit", stored, free)
	if stored > 3*free {
		t.Errorf("the checkpoints take %d bytes, and %d without a limit", stored, free)
	}
}

// TestDamagedAncestorIsNotMoved: a part of an ancestor that can't be read does not keep a checkpoint from being made. It depends on
// that ancestor, as it would have without a limit.
func TestDamagedAncestorIsNotMoved(t *testing.T) {
	c, _ := scribbled(t, 4, 100)
	for name, shard := range c[1].Files { // all blocks, no index
		end, err := decodeFooter(shard[len(shard)-ShardFooter:], int64(len(shard)))
		if err != nil {
			t.Fatal(name, err)
		}
		for i := ShardHeader; i < int(end.indexOffset); i++ {
			shard[i] ^= 0xff
		}
	}
	c.add(t, WriterOptions{MaxOrigins: 2}, KindFull, c[3].memory, c[3].memory.present(), func(*Writer) {})
	m := c.open(t, 4).Manifest()
	found := map[string]bool{}
	for _, o := range m.Origins {
		found[o.ID] = true
	}
	if !found[hex.EncodeToString(c[1].id[:])] || len(m.Origins) > 2 {
		t.Errorf("it refers to %v", m.Origins)
	}
}
