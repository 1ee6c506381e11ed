package convert

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/store"
)

// encodeImage makes an image of CRIU.
func encodeImage(tb testing.TB, magic uint32, entries ...proto.Message) []byte {
	tb.Helper()
	out := binary.LittleEndian.AppendUint32(nil, 0x54564319)
	out = binary.LittleEndian.AppendUint32(out, magic)
	for _, e := range entries {
		raw, err := proto.Marshal(e)
		if err != nil {
			tb.Fatal(err)
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(len(raw)))
		out = append(out, raw...)
	}
	return out
}

func put(tb testing.TB, dir, name string, text []byte) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// Areas of the processes of tests, in pages from base on: one that is Stasis', a file's, one that is shared, a stack.
const (
	base       = uint64(0x10000000)
	oursFrom   = 0
	oursTo     = 200
	fileTo     = 260
	sharedFrom = 300
	sharedTo   = 360
	stackFrom  = 400
	stackTo    = 420
)

func at(page uint64) uint64 { return base + page*pageSize }

func area(from, to uint64, flags, status uint32) *vma.VmaEntry {
	return &vma.VmaEntry{
		Start: proto.Uint64(at(from)), End: proto.Uint64(at(to)), Pgoff: proto.Uint64(0), Shmid: proto.Uint64(0), Prot: proto.Uint32(3),
		Flags: proto.Uint32(flags), Status: proto.Uint32(status), Fd: proto.Int64(-1),
	}
}

// putState writes the images of state of a tree: the first pid is the root, the others are its children.
func putState(tb testing.TB, dir string, pids ...uint32) {
	tb.Helper()
	for name, text := range stateImages(tb, pids...) {
		put(tb, dir, name, text)
	}
}

func stateImages(tb testing.TB, pids ...uint32) map[string][]byte {
	tb.Helper()
	images := map[string][]byte{
		inventoryImage: encodeImage(tb, criu.MagicInventory, &inventory.InventoryEntry{ImgVersion: proto.Uint32(2), DumpUptime: proto.Uint64(7)}),
	}
	var tree []proto.Message
	for i, pid := range pids {
		ppid := uint32(0)
		if i > 0 {
			ppid = pids[0]
		}
		tree = append(tree, &pstree.PstreeEntry{
			Pid: proto.Uint32(pid), Ppid: proto.Uint32(ppid), Pgid: proto.Uint32(pids[0]), Sid: proto.Uint32(pids[0]), Threads: []uint32{pid},
		})
		march := criu_core.CoreEntry_X86_64
		images[fmt.Sprintf("core-%d.img", pid)] = encodeImage(tb, criu.MagicCore, &criu_core.CoreEntry{
			Mtype: &march,
			Tc: &criu_core.TaskCoreEntry{
				TaskState: proto.Uint32(1), ExitCode: proto.Uint32(0), Personality: proto.Uint32(0), Flags: proto.Uint32(0),
				BlkSigset: proto.Uint64(0), Comm: proto.String("worker"),
			},
			ThreadCore: &criu_core.ThreadCoreEntry{FutexRla: proto.Uint64(0), FutexRlaLen: proto.Uint32(0), Creds: noCreds()},
		})
		zero := proto.Uint64(0)
		images[fmt.Sprintf("mm-%d.img", pid)] = encodeImage(tb, criu.MagicMM, &mm.MmEntry{
			MmStartCode: zero, MmEndCode: zero, MmStartData: zero, MmEndData: zero, MmStartStack: zero, MmStartBrk: zero, MmBrk: zero,
			MmArgStart: proto.Uint64(at(stackFrom) + 8), MmArgEnd: proto.Uint64(at(stackFrom) + 8 + 10), MmEnvStart: zero, MmEnvEnd: zero, ExeFileId: proto.Uint32(1),
			Vmas: []*vma.VmaEntry{
				area(oursFrom, oursTo, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, criu.AreaRegular|criu.AreaAnonPrivate),
				area(oursTo, fileTo, unix.MAP_PRIVATE, criu.AreaRegular|criu.AreaFilePrivate),
				area(sharedFrom, sharedTo, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, criu.AreaRegular|criu.AreaAnonPrivate),
				area(stackFrom, stackTo, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_GROWSDOWN, criu.AreaRegular|criu.AreaAnonPrivate|criu.AreaStack),
			},
		})
	}
	images["pstree.img"] = encodeImage(tb, criu.MagicPstree, tree...)
	return images
}

func noCreds() *creds.CredsEntry {
	zero := proto.Uint32(0)
	return &creds.CredsEntry{Uid: zero, Gid: zero, Euid: zero, Egid: zero, Suid: zero, Sgid: zero, Fsuid: zero, Fsgid: zero, Secbits: zero}
}

// memory is what a process has: pages by number from base on. A page that is not there is not in the map.
type memory map[uint64][]byte

// pageOf makes a page that says whose it is.
func pageOf(words ...any) []byte {
	page := bytes.Repeat([]byte(fmt.Sprintln(words...)), pageSize/len(fmt.Sprintln(words...))+1)
	return page[:pageSize]
}

// putLayer writes the page map of a process with the pages in has; of these, the ones in inherited are said to be in the parent.
func putLayer(tb testing.TB, dir string, pid int, pagesID uint32, has memory, inherited map[uint64]bool) {
	tb.Helper()
	var runs []criu.PageRun
	var pages []byte
	for n := range uint64(stackTo) {
		page, there := has[n]
		if !there {
			continue
		}
		flags := criu.PagePresent | criu.PageLazy
		if inherited[n] {
			flags = criu.PageInParent
		} else {
			pages = append(pages, page...)
		}
		if k := len(runs); k > 0 && runs[k-1].End() == at(n) && runs[k-1].Flags == flags {
			runs[k-1].Pages++
			continue
		}
		runs = append(runs, criu.PageRun{Start: at(n), Pages: 1, Flags: flags})
	}
	text, err := criu.EncodePagemap(pagesID, runs)
	if err != nil {
		tb.Fatal(err)
	}
	put(tb, dir, criu.PagemapImage(pid), text)
	put(tb, dir, criu.PagesImage(pagesID), pages)
}

// putLayers writes a folder and so many parents with random pages, and returns the newest folder and what the process has there.
func putLayers(tb testing.TB, random *rand.Rand, root string, layers int, pids ...uint32) (string, map[uint32]memory) {
	tb.Helper()
	now := map[uint32]memory{}
	dir := ""
	for layer := range layers {
		parent := dir
		dir = filepath.Join(root, fmt.Sprint(layer))
		if err := os.Mkdir(dir, 0o700); err != nil {
			tb.Fatal(err)
		}
		if parent != "" {
			if err := os.Symlink(filepath.Join("..", filepath.Base(parent)), filepath.Join(dir, parentLink)); err != nil {
				tb.Fatal(err)
			}
		}
		for i, pid := range pids {
			inherited := map[uint64]bool{}
			has := memory{}
			for n := range uint64(stackTo) {
				inArea := n < fileTo || n >= sharedFrom && n < sharedTo || n >= stackFrom
				before, was := now[pid][n]
				switch {
				case !inArea:
				case was && random.IntN(3) > 0:
					has[n], inherited[n] = before, true
				case random.IntN(3) > 0:
					has[n] = pageOf(layer, pid, n)
					if n >= sharedFrom && n < sharedTo {
						has[n] = pageOf("shared", n)
					}
					if n < oursTo && random.IntN(10) == 0 {
						has[n] = make([]byte, pageSize)
					}
				}
			}
			putLayer(tb, dir, int(pid), uint32(i+1), has, inherited)
			now[pid] = has
		}
	}
	putState(tb, dir, pids...)
	return dir, now
}

// importTo imports into a folder.
func importTo(tb testing.TB, from, to string) (*Imported, error) {
	tb.Helper()
	return Import(tb.Context(), from, ImportOptions{
		Target: func(string) (store.Target, error) { return store.CreateFolder(to) }, Shards: 2, Workers: 3,
	})
}

// has reads what a checkpoint has of a process, wherever that is. The second result are the pages in blocks.
func has(tb testing.TB, c *reader.Checkpoint, pid int) (all memory, blocks map[uint64]bool) {
	tb.Helper()
	all, blocks = memory{}, map[uint64]bool{}
	var buffer reader.Buffer
	for _, r := range c.Ranges(pid) {
		for addr := r.Start; addr < r.End; addr += pageSize {
			n := (addr - base) / pageSize
			blocks[n] = true
			block, page, kind := c.Find(pid, addr)
			if kind == image.Zero {
				all[n] = make([]byte, pageSize)
				continue
			}
			data, err := c.ReadBlock(block, &buffer)
			if err != nil {
				tb.Fatal(err)
			}
			all[n] = bytes.Clone(data[page*pageSize : (page+1)*pageSize])
		}
	}
	var pagemap, pages bytes.Buffer
	if err := c.WriteFile(criu.PagemapImage(pid), &pagemap); err != nil {
		tb.Fatal(err)
	}
	id, runs, err := criu.DecodePagemap(pagemap.Bytes())
	if err != nil {
		tb.Fatal(err)
	}
	if err := c.WriteFile(criu.PagesImage(id), &pages); err != nil {
		tb.Fatal(err)
	}
	for _, run := range runs {
		for i := range run.Pages {
			n := (run.Start-base)/pageSize + i
			if all[n] != nil {
				tb.Errorf("page %d of %d is in a block and with CRIU", n, pid)
			}
			all[n] = bytes.Clone(pages.Next(pageSize))
		}
	}
	if pages.Len() > 0 {
		tb.Errorf("%d bytes of pages too many", pages.Len())
	}
	return all, blocks
}

// folderHas reads what a folder of CRIU has of a process.
func folderHas(tb testing.TB, dir string, pid int) memory {
	tb.Helper()
	l, err := openLayers(dir, "")
	if err != nil {
		tb.Fatal(err)
	}
	s, err := openSpace(l, criu.PagemapImage(pid))
	if err != nil {
		tb.Fatal(err)
	}
	defer s.Close()
	list, err := s.stretches()
	if err != nil {
		tb.Fatal(err)
	}
	all := memory{}
	for _, part := range list {
		for i := range part.pages {
			page := make([]byte, pageSize)
			if err := part.in.readPages(page, part.at+int64(i)*pageSize); err != nil {
				tb.Fatal(err)
			}
			all[(part.start-base)/pageSize+i] = page
		}
	}
	return all
}

// compare wants the same pages; where zeros is set, a page of zeros may also not be there.
func compare(tb testing.TB, what string, got, want memory, zerosOptional bool) {
	tb.Helper()
	zero := make([]byte, pageSize)
	for n := range uint64(stackTo) {
		g, w := got[n], want[n]
		if zerosOptional && g == nil {
			g = zero
		}
		if zerosOptional && w == nil {
			w = zero
		}
		if !bytes.Equal(g, w) {
			tb.Fatalf("%s: page %d is %.30q, should be %.30q", what, n, g, w)
		}
	}
}

func openFolder(tb testing.TB, dir string) *reader.Checkpoint {
	tb.Helper()
	folder, err := store.OpenFolder(dir)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := reader.Open(folder)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}
