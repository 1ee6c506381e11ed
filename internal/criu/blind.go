package criu

import (
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"fmt"
	"os"
	"sort"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

//go:generate make -C ../.. generate

// The library of preload/*.c, built by "make generate". It is kept in the
// tree so that a program can link Stasis with nothing but Go, and CI checks
// that it is what its source makes.
//
//go:embed preload/preload_amd64.so
var preloadLibrary []byte

// Layout of struct table and struct lists in preload/blind.c.
const (
	tableMagic = 0x31444e494c425453
	tableBytes = 4 << 20
	entryBytes = 24
	maxHidden  = (tableBytes - 16) / entryBytes

	listsBytes = 4 << 20
	maxLists   = 512
	firstText  = 8 + maxLists*entryBytes // offset of the first list's text
)

// Blind hides memory from CRIU. It holds the preloaded library and the table of
// hidden ranges, both in memory that is gone with this process.
type Blind struct {
	library, table *os.File
	shared         []byte
	lists          int // number of mapping lists given
	texts          int // where the text of the next one goes
	runID          [16]byte
}

// NewBlind prepares the library and an empty table; Close frees them.
func NewBlind() (*Blind, error) {
	library, err := memfile("stasis-preload.so", preloadLibrary)
	if err != nil {
		return nil, err
	}
	header := make([]byte, 16)
	*(*uint64)(unsafe.Pointer(&header[0])) = tableMagic
	b := &Blind{library: library, texts: firstText}
	rand.Read(b.runID[:])
	b.table, err = memfile("stasis-blind-"+b.LockTable(), header) // so that it can be seen which lock is whose
	if err != nil {
		library.Close()
		return nil, err
	}
	if err := b.table.Truncate(tableBytes + listsBytes); err != nil {
		b.Close()
		return nil, fmt.Errorf("make the table of hidden memory: %w", err)
	}
	b.shared, err = unix.Mmap(int(b.table.Fd()), 0, tableBytes+listsBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("map the table of hidden memory: %w", err)
	}
	return b, nil
}

// Close frees the library and the table.
func (b *Blind) Close() {
	if b.shared != nil {
		unix.Munmap(b.shared)
	}
	b.table.Close()
	b.library.Close()
}

// Hide hides ranges of frozen processes, given by pid, from the CRIU that was
// started with b. What does not fit into the table is left out, smallest
// ranges first, and stays with CRIU; the returned map is what is hidden.
func (b *Blind) Hide(ranges map[int][]proc.Range) map[int][]proc.Range {
	entries := largest(flatten(ranges), maxHidden)
	hidden := make(map[int][]proc.Range, len(ranges))
	for i, e := range entries {
		b.put(16+i*entryBytes, uint64(e.pid), e.Start, e.End)
		hidden[e.pid] = append(hidden[e.pid], e.Range)
	}
	// Last, so that the library sees either nothing or the whole table.
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&b.shared[8])), uint64(len(entries)))
	return hidden
}

// Mappings gives CRIU the list of a frozen process' mappings, so that it need
// not read smaps: each mapping has its line of maps and its flags. It returns
// false when there is no room; CRIU then reads smaps.
func (b *Blind) Mappings(pid int, mappings []proc.Mapping) bool {
	lists := b.shared[tableBytes:]
	text := make([]byte, 0, 256*len(mappings))
	for _, m := range mappings {
		text = append(text, m.Line...)
		text = append(text, "\nVmFlags: "...)
		text = append(text, m.Flags...)
		text = append(text, '\n')
	}
	if b.lists == maxLists || b.texts+len(text) > listsBytes {
		return false
	}
	copy(lists[b.texts:], text)
	b.put(tableBytes+8+b.lists*entryBytes, uint64(pid), uint64(b.texts), uint64(len(text)))
	b.texts += len(text)
	b.lists++
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&lists[0])), uint64(b.lists))
	return true
}

// put writes an entry of three numbers to the shared memory.
func (b *Blind) put(at int, values ...uint64) {
	for i, v := range values {
		*(*uint64)(unsafe.Pointer(&b.shared[at+8*i])) = v
	}
}

type hiddenRange struct {
	pid int
	proc.Range
}

// flatten sorts the ranges by process and address and joins neighbours.
func flatten(ranges map[int][]proc.Range) []hiddenRange {
	var all []hiddenRange
	for pid, list := range ranges {
		for _, r := range list {
			all = append(all, hiddenRange{pid, r})
		}
	}
	sort.Slice(all, func(i, j int) bool {
		return all[i].pid < all[j].pid || all[i].pid == all[j].pid && all[i].Start < all[j].Start
	})
	joined := all[:0]
	for _, r := range all {
		if n := len(joined); n > 0 && joined[n-1].pid == r.pid && joined[n-1].End == r.Start {
			joined[n-1].End = r.End
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// largest keeps the limit largest of the sorted ranges, in their order.
func largest(all []hiddenRange, limit int) []hiddenRange {
	if len(all) <= limit {
		return all
	}
	sizes := make([]uint64, len(all))
	for i, r := range all {
		sizes[i] = r.Len()
	}
	sort.Slice(sizes, func(i, j int) bool { return sizes[i] > sizes[j] })
	smallest := sizes[limit-1]
	kept := make([]hiddenRange, 0, limit)
	for _, r := range all {
		if r.Len() >= smallest && len(kept) < limit {
			kept = append(kept, r)
		}
	}
	return kept
}

// environment makes the dynamic loader of CRIU load the library.
func (b *Blind) environment() []string {
	return []string{preload(), "STASIS_BLIND_FD=" + strconv.Itoa(tableFD), "STASIS_RUN_ID=" + hex.EncodeToString(b.runID[:])}
}

// LockTable is the name of the table of nftables in which a CRIU that was started
// with b locks connections.
func (b *Blind) LockTable() string {
	id := hex.EncodeToString(b.runID[:])
	return tableOf(id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:])
}

func preload() string {
	library := "/proc/self/fd/" + strconv.Itoa(libraryFD)
	if others := os.Getenv("LD_PRELOAD"); others != "" {
		library += ":" + others
	}
	return "LD_PRELOAD=" + library
}

func memfile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	if _, err := file.Write(content); err != nil {
		file.Close()
		return nil, fmt.Errorf("write %s to memory: %w", name, err)
	}
	return file, nil
}
