package memmap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"stasis/internal/codec"
	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

const page = image.PageSize

// img makes an image of CRIU's of one kind.
func img(t *testing.T, magic uint32, entries ...proto.Message) []byte {
	t.Helper()
	out := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 0x54564319), magic)
	for _, e := range entries {
		complete(e.ProtoReflect())
		raw, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		out = append(binary.LittleEndian.AppendUint32(out, uint32(len(raw))), raw...)
	}
	return out
}

// complete sets what CRIU's messages have to have.
func complete(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		switch f := fields.Get(i); {
		case f.Cardinality() == protoreflect.Required && f.Message() != nil:
			complete(m.Mutable(f).Message())
		case f.Cardinality() == protoreflect.Required && !m.Has(f):
			m.Set(f, f.Default())
		case f.Message() != nil && !f.IsList() && m.Has(f):
			complete(m.Mutable(f).Message())
		}
	}
}

func mapped(start, pages uint64, status, flags, prot uint32, shmid, pgoff uint64) *vma.VmaEntry {
	return &vma.VmaEntry{
		Start: proto.Uint64(start * page), End: proto.Uint64((start + pages) * page), Pgoff: proto.Uint64(pgoff), Shmid: proto.Uint64(shmid),
		Prot: proto.Uint32(prot), Flags: proto.Uint32(flags), Status: proto.Uint32(status), Fd: proto.Int64(-1),
	}
}

// content is a page of its own for each seed.
func content(seed byte) []byte {
	data := make([]byte, page)
	r := rand.NewChaCha8([32]byte{seed})
	_, _ = r.Read(data)
	return data
}

// stored are the checkpoints that were made, by id.
var stored = map[[16]byte]*storetest.Memory{}

// checkpointOf makes a checkpoint of two processes, whose memory Stasis and CRIU have. Heaps of different seeds differ.
func checkpointOf(t *testing.T, parent *reader.Checkpoint, seed byte, mappings []byte) *reader.Checkpoint {
	t.Helper()
	memory := storetest.NewMemory()
	c, err := codec.New("lz4", 0)
	check(t, err)
	options := writer.Options{Shards: 2, Codec: c, ID: [16]byte{seed}}
	if parent != nil {
		options.Parent, options.ParentPath = parent, "../parent"
	}
	w, err := writer.New(memory, options)
	check(t, err)
	put := func(pid int, at uint64, data []byte) {
		t.Helper()
		check(t, w.PutPages(0, image.PageBlock{PID: pid, Extents: []image.Extent{{Addr: at * page, Pages: 1}}, Data: data}))
	}
	put(10, 0x101, content(1))
	put(10, 0x102, content(seed))
	put(10, 0x103, make([]byte, page))
	put(20, 0x101, content(200))
	file := func(name string, text []byte) { t.Helper(); check(t, w.PutFile(name, bytes.NewReader(text))) }
	if mappings != nil {
		name := "/lib/libc.so"
		file("files.img", img(t, criu.MagicFiles, &fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(5), Reg: &regfile.RegFileEntry{
			Id: proto.Uint32(5), Flags: proto.Uint32(0), Pos: proto.Uint64(0), Fown: nil, Name: &name,
		}}))
		file("mm-10.img", mappings)
		runs := func(id uint32, list ...criu.PageRun) []byte {
			text, err := criu.EncodePagemap(id, list)
			check(t, err)
			return text
		}
		present := criu.PagePresent
		file("pagemap-10.img", runs(1, criu.PageRun{Start: 0x203 * page, Pages: 1, Flags: present}, criu.PageRun{Start: 0x300 * page, Pages: 9, Flags: criu.PageLazy}, criu.PageRun{Start: 0x500 * page, Pages: 2, Flags: present}))
		file("pages-1.img", append(append(content(30), content(31)...), content(seed+100)...))
		file("pagemap-shmem-77.img", runs(2, criu.PageRun{Start: 0, Pages: 4, Flags: present}))
		file("pages-2.img", bytes.Repeat(content(40), 4))
	}
	at := func(first, pages uint64) []image.Range {
		return []image.Range{{Start: first * page, End: (first + pages) * page}}
	}
	check(t, w.Finish(map[int][]image.Range{10: at(0x101, 3), 20: at(0x101, 1)}, &image.Manifest{
		Kind: image.KindFull, RootPID: 10, Parent: parentID(parent), Processes: []image.Process{{PID: 10, Comm: "one"}, {PID: 20, PPID: 10, Comm: "two"}, {PID: 30, PPID: 10, Comm: "zombie"}},
	}))
	stored[options.ID] = memory
	opened, err := reader.OpenChain(memory, func(id [16]byte) (store.Source, error) { return stored[id], nil })
	check(t, err)
	t.Cleanup(func() { opened.Close() })
	return opened
}

func parentID(c *reader.Checkpoint) string {
	if c == nil {
		return ""
	}
	return c.Manifest().ID
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mappings(t *testing.T) []byte {
	t.Helper()
	const anon = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	return img(t, criu.MagicMM, &mm.MmEntry{Vmas: []*vma.VmaEntry{
		mapped(0x100, 4, 1|criu.AreaHeap|1<<9, anon, unix.PROT_READ|unix.PROT_WRITE, 0, 0),
		mapped(0x200, 8, 1|criu.AreaFilePrivate, unix.MAP_PRIVATE, unix.PROT_READ|unix.PROT_EXEC, 5, 0),
		mapped(0x300, 9, 1|1<<9, anon, 0, 0, 0),
		mapped(0x400, 2, 1|criu.AreaAnonShared, unix.MAP_SHARED|unix.MAP_ANONYMOUS, unix.PROT_READ|unix.PROT_WRITE, 77, page),
		mapped(0x410, 2, 1|criu.AreaAnonShared, unix.MAP_SHARED|unix.MAP_ANONYMOUS, unix.PROT_READ, 77, page),
		mapped(0x500, 2, 1|criu.AreaStack|1<<9, anon|unix.MAP_GROWSDOWN, unix.PROT_READ|unix.PROT_WRITE, 0, 0),
		mapped(0x600, 512, 1|1<<9, anon|unix.MAP_HUGETLB, unix.PROT_READ, 0, 0),
		mapped(0x900, 1, 1|criu.AreaVDSO, anon, unix.PROT_READ, 0, 0),
		mapped(0x302, 2, criu.AreaGuard, 0, 0, 0, 0), // pages of one above, which is no mapping of its own
	}})
}

// Of finds each mapping's kind, access and file, and where each of its pages is: in blocks of its own, of the parent's, or in CRIU's images.
func TestOf(t *testing.T) {
	parent := checkpointOf(t, nil, 100, mappings(t))
	m := Of(checkpointOf(t, parent, 101, mappings(t)), 1024)
	if len(m.Notes) > 0 || m.LeftOut != 0 || m.CellBytes != page {
		t.Errorf("%v, %d left out, cells of %d", m.Notes, m.LeftOut, m.CellBytes)
	}
	want := []Mapping{
		{PID: 10, Start: 0x100, End: 0x104, Kind: Heap, Perms: "rw-p", Parts: Parts{Changed: page, Unchanged: page, Zero: page}},
		{PID: 10, Start: 0x200, End: 0x208, Kind: File, Perms: "r-xp", File: "/lib/libc.so", Parts: Parts{StoredAgain: page}},
		{PID: 10, Start: 0x300, End: 0x309, Kind: Anonymous, Perms: "---p"},
		{PID: 10, Start: 0x400, End: 0x402, Kind: Shared, Perms: "rw-s", Parts: Parts{Unchanged: 2 * page}},
		{PID: 10, Start: 0x410, End: 0x412, Kind: Shared, Perms: "r--s"}, // the same memory once more
		{PID: 10, Start: 0x500, End: 0x502, Kind: Stack, Perms: "rw-p", Parts: Parts{StoredAgain: 2 * page}},
		{PID: 10, Start: 0x600, End: 0x800, Kind: Huge, Perms: "r--p"},
		{PID: 10, Start: 0x900, End: 0x901, Kind: Kernel, Perms: "r--p"},
		{PID: 20, Start: 0x101, End: 0x102, Kind: Unknown, Parts: Parts{Unchanged: page}}, // it has no mappings here
	}
	if len(m.Mappings) != len(want) {
		t.Fatalf("%d mappings: %+v", len(m.Mappings), m.Mappings)
	}
	for i, w := range want {
		got := m.Mappings[i]
		got.Start, got.End, got.area = got.Start/page, got.End/page, nil
		if got != w {
			t.Errorf("%d: %+v, expected %+v", i, got, w)
		}
	}
	if len(m.Processes) != 2 || m.Processes[0].Command != "one" || m.Processes[0].Parts.Sum() != 8*page || m.Processes[1].Parts.Sum() != page {
		t.Errorf("processes: %+v", m.Processes)
	}
	var kinds []string
	for _, c := range m.Cells {
		kinds = append(kinds, string("?HSAFsGK"[c.Kind]))
		if c.End-c.Start != page || c.Parts.Sum() != page {
			t.Errorf("a cell is %+v", c)
		}
	}
	if got := strings.Join(kinds, ""); got != "HHHFssSS?" {
		t.Errorf("the cells are %s", got)
	}
	if first := Of(parent, 1024); first.Totals[0].Parts.Unchanged+first.Totals[0].Parts.StoredAgain != 0 || first.Processes[0].Parts.Changed != 7*page {
		t.Errorf("without a parent: %+v", first.Processes)
	}
}

// What is not there or makes no sense is left out, and said.
func TestOfDamage(t *testing.T) {
	m := Of(checkpointOf(t, nil, 1, nil), 100)
	if len(m.Notes) != 0 || len(m.Mappings) != 2 || m.Mappings[0].Kind != Unknown || m.Mappings[0].Parts.Sum() != 3*page {
		t.Errorf("without mappings: %v %+v", m.Notes, m.Mappings)
	}
	backwards := img(t, criu.MagicMM, &mm.MmEntry{Vmas: []*vma.VmaEntry{mapped(0x200, 4, 1, 0x22, 1, 0, 0), mapped(0x100, 4, 1, 0x22, 1, 0, 0)}})
	for what, bad := range map[string][]byte{
		"no image": []byte("nonsense"), "another image": img(t, criu.MagicFiles), "empty": {}, "cut": mappings(t)[:40], "backwards": backwards,
	} {
		m := Of(checkpointOf(t, nil, 1, bad), 100)
		if len(m.Notes) != 1 || !strings.Contains(m.Notes[0], "mm-10.img") || m.Processes[0].Parts.Sum() == 0 {
			t.Errorf("%s: %v %+v", what, m.Notes, m.Processes)
		}
	}
}

// Cells have all memory, in order, are no more than asked for, and each of one process and kind where there is room for that.
func TestCut(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		var pieces []piece
		var want [kinds]Parts
		total, at, pid, kind := int64(0), uint64(0), 1, Kind(1)
		for range random.IntN(200) {
			if random.IntN(9) == 0 {
				pid, at = pid+1, 0
			}
			if random.IntN(3) == 0 {
				kind = Kind(random.IntN(int(kinds)))
			}
			at += uint64(random.IntN(3)) * page
			p := piece{pid: pid, start: at, end: at + uint64(1+random.IntN(1<<random.IntN(12)))*page, kind: kind, where: where(random.IntN(5))}
			at = p.end
			pieces = append(pieces, p)
			want[kind].add(p.parts())
			total += p.len()
		}
		most := 1 + random.IntN(300)
		cells, size := cut(pieces, most)
		if len(cells) > most || size < page || size&(size-1) != 0 {
			t.Fatalf("%d cells of %d, at most %d", len(cells), size, most)
		}
		mixed := false
		var got [kinds]Parts
		var sum, all Parts
		for i, c := range cells {
			if n := c.Parts.Sum(); n <= 0 || n > size || c.End <= c.Start && !mixed {
				t.Fatalf("cells of %d: %+v", size, c)
			}
			if i > 0 && cells[i-1].PID == c.PID && cells[i-1].End > c.Start || i > 0 && cells[i-1].PID > c.PID {
				t.Fatalf("%+v comes after %+v", c, cells[i-1])
			}
			got[c.Kind].add(c.Parts)
			sum.add(c.Parts)
		}
		for _, w := range want {
			all.add(w)
		}
		if sum != all || sum.Sum() != total {
			t.Fatalf("the cells have %+v, and there are %+v", sum, all)
		}
		changes := 0
		for i := range pieces {
			if i == 0 || pieces[i].pid != pieces[i-1].pid || pieces[i].kind != pieces[i-1].kind {
				changes++
			}
		}
		if changes <= most/2 && got != want {
			t.Fatalf("with room for %d cells and %d changes, kinds are mixed", most, changes)
		}
		if most >= 300 && size > page && total/(size/2) < int64(most)/4 {
			t.Fatalf("%d bytes are cut into cells of %d", total, size)
		}
	}
	if cells, _ := cut(nil, 10); len(cells) != 0 {
		t.Error("nothing is cut")
	}
}
