package image_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/writer"
)

// world is the processes that chains are made of in tests.
type world struct {
	r    *rand.Rand
	now  imagetest.Memory
	used [][]byte // contents that were made
}

// content makes a page: all new, zero, one that was there before, or one that differs from old, if there is one, a little.
func (w *world) content(old []byte) []byte {
	switch k := w.r.IntN(10); {
	case k == 0:
		return nil
	case k == 1 && len(w.used) > 0:
		return w.used[w.r.IntN(len(w.used))]
	case k < 6 && old != nil:
		b := bytes.Clone(old)
		for range 1 + w.r.IntN(6) {
			at := w.r.IntN(image.PageSize - 16)
			for i := range w.r.IntN(16) {
				b[at+i] = byte(w.r.Uint32())
			}
		}
		return b
	case k == 6:
		return bytes.Repeat([]byte{byte(1 + w.r.IntN(255))}, image.PageSize)
	}
	b := imagetest.Tagged(w.r.Uint64()|1, 1)
	w.used = append(w.used, b)
	return b
}

// step lets processes come and go, map, unmap and write.
func (w *world) step() {
	const space = 400
	for range w.r.IntN(3) {
		pid := 1 + w.r.IntN(5)*w.r.IntN(1000)
		if _, ok := w.now[pid]; ok && w.r.IntN(2) == 0 && len(w.now) > 1 {
			delete(w.now, pid)
		} else if !ok {
			w.now[pid] = map[uint64][]byte{}
		}
	}
	for _, pid := range w.now.PIDs() {
		if w.r.IntN(3) == 0 {
			start, n := w.r.Uint64N(space), w.r.Uint64N(120)
			for page := start; page < start+n; page++ {
				w.now.Set(pid, page, w.content(nil))
			}
		}
		for range w.r.IntN(40) {
			if page := w.r.Uint64N(space); w.now[pid][page] != nil {
				w.now.Set(pid, page, w.content(w.now[pid][page]))
			}
		}
		for range w.r.IntN(10) {
			delete(w.now[pid], w.r.Uint64N(space))
		}
	}
}

// put puts pages of a process, in blocks of random sizes.
func (w *world) put(tb testing.TB, to *writer.Writer, round, pid int, pages []uint64, content func(page uint64) []byte) {
	tb.Helper()
	slices.Sort(pages)
	for len(pages) > 0 {
		var b image.PageBlock
		for n := 1 + w.r.IntN(image.MaxPages); n > 0 && len(pages) > 0; n-- {
			if k := len(b.Extents); k > 0 && b.Extents[k-1].Addr/image.PageSize+uint64(b.Extents[k-1].Pages) == pages[0] {
				b.Extents[k-1].Pages++
			} else {
				b.Extents = append(b.Extents, image.Extent{Addr: pages[0] * image.PageSize, Pages: 1})
			}
			page := content(pages[0])
			if page == nil {
				page = make([]byte, image.PageSize)
			}
			b.Data = append(b.Data, page...)
			pages = pages[1:]
		}
		b.PID = pid
		if err := to.PutPages(round, b); err != nil {
			tb.Fatal(err)
		}
		clear(b.Data)
	}
}

// fill writes a checkpoint of the world over that of before. A full one has all that differs, a pre-dump some of it. Pages are
// put in two rounds, some of them with other content in the first; some are put that did not change. What the checkpoint must
// have is returned.
func (w *world) fill(tb testing.TB, to *writer.Writer, before imagetest.Memory, full bool) imagetest.Memory {
	tb.Helper()
	want := w.now.Clone()
	for _, pid := range w.now.PIDs() {
		var first, second []uint64
		for page, content := range w.now[pid] {
			old, had := before[pid][page]
			same := had && bytes.Equal(old, content)
			switch {
			case same && w.r.IntN(8) > 0:
			case !full && w.r.IntN(3) == 0:
				delete(want[pid], page)
				if had {
					want.Set(pid, page, old)
				}
			default:
				if w.r.IntN(3) == 0 {
					first = append(first, page)
				}
				second = append(second, page)
			}
		}
		w.put(tb, to, 0, pid, first, func(page uint64) []byte { return w.content(w.now[pid][page]) })
		w.put(tb, to, 1, pid, second, func(page uint64) []byte { return w.now[pid][page] })
	}
	return want
}

// TestChainsAgainstModel writes random chains and reads every checkpoint of them.
func TestChainsAgainstModel(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			world := &world{r: r, now: imagetest.Memory{1: {}}}
			var c imagetest.Chain
			files, limits := map[int][]byte{}, []int{1, 4, 100}
			for depth := range 12 + r.IntN(6) {
				for range 1 + r.IntN(2) {
					world.step()
				}
				before := imagetest.Memory{}
				if depth > 0 {
					before = c[depth-1].Content
				}
				kind := image.KindFull
				if r.IntN(3) == 0 {
					kind = image.KindPreDump
				}
				files[depth] = append(imagetest.Tagged(4, 100), imagetest.Tagged(r.Uint64(), 3)...)
				if depth > 1 && r.IntN(2) == 0 {
					files[depth] = files[depth-1]
				}
				var want imagetest.Memory
				o := writer.Options{Shards: 1 + r.IntN(4), Codec: imagetest.NewCodec(t, codec.Names()[r.IntN(5)]), MaxOrigins: limits[seed%3]}
				c.Add(t, o, kind, nil, world.now.Present(), func(w *writer.Writer) {
					want = world.fill(t, w, before, kind == image.KindFull)
					imagetest.PutFile(t, w, "pages.img", files[depth])
				})
				c[depth].Content = want
			}
			var all image.Figures
			for i := range c {
				p := c.Open(t, i)
				imagetest.CheckMemory(t, p, c[i].Content)
				f := &p.Manifest().Figures
				all.BytesReferenced += f.BytesReferenced
				all.BytesShared += f.BytesShared
				all.BytesDelta += f.BytesDelta
				if f.BytesReferenced+f.BytesShared+f.BytesDelta+f.ZeroPages*image.PageSize > f.BytesMemory || f.BytesSuperseded < 0 {
					t.Errorf("figures are %+v", f)
				}
				if err := p.Verify(context.Background(), 2, nil); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(imagetest.FileOf(t, p, "pages.img"), files[i]) {
					t.Error("a file differs")
				}
				imagetest.CheckOrigins(t, c, i, p)
				if n := len(p.Manifest().Origins); n > limits[seed%3] {
					t.Errorf("checkpoint %d refers to %d ancestors, and may to %d", i, n, limits[seed%3])
				}
				imagetest.CheckUses(t, p)
			}
			checkUsesSuffice(t, c)
			if all.BytesReferenced == 0 || all.BytesShared == 0 || all.BytesDelta == 0 {
				t.Errorf("something was not tried: %+v", all)
			}
		})
	}
}

// checkUsesSuffice wipes everything out of the ancestors that the last checkpoint does not need, and reads that one.
func checkUsesSuffice(t *testing.T, c imagetest.Chain) {
	t.Helper()
	top := len(c) - 1
	p := c.Open(t, top)
	wiped := make(imagetest.Chain, len(c))
	for i, l := range c {
		wiped[i] = l
		if i == top {
			continue
		}
		wiped[i].Memory = l.Copy()
		for name, file := range l.Files {
			wiped[i].Files[name] = append(bytes.Clone(file[:image.ShardHeader]), bytes.Repeat([]byte{0xee}, len(file)-image.ShardHeader)...)
		}
	}
	for _, u := range p.Uses() {
		if u.Origin == 0 {
			continue
		}
		at := slices.IndexFunc(c, func(l imagetest.Link) bool { return hex.EncodeToString(l.ID[:]) == p.Manifest().Origins[u.Origin-1].ID })
		name := image.ShardName(u.Shard)
		copy(wiped[at].Files[name][u.Offset:u.Offset+u.Len], c[at].Files[name][u.Offset:])
	}
	again := wiped.Open(t, top)
	imagetest.CheckMemory(t, again, c[top].Content)
	if err := again.Verify(context.Background(), 2, nil); err != nil {
		t.Error(err)
	}
	for _, f := range p.Files() {
		if !bytes.Equal(imagetest.FileOf(t, again, f.Name), imagetest.FileOf(t, p, f.Name)) {
			t.Errorf("%s differs", f.Name)
		}
	}
}
