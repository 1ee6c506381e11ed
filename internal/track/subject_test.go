package track

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/subject"
)

// The subjects' memory: some page tables.
const (
	pages        = 4096
	tables       = pages * proc.PageSize / tableBytes
	pagesInTable = tableBytes / proc.PageSize
)

// arena is the memory of a subject, without huge pages, which have one bit for
// all.
type arena uintptr

func newArena() arena {
	at := (mapAt(0, pages*proc.PageSize+tableBytes, 0) + tableBytes - 1) &^ (tableBytes - 1)
	a := arena(at)
	a.unhuge()
	return a
}

func (a arena) unhuge() {
	_ = unix.Madvise(unsafe.Slice(a.page(0), pages*proc.PageSize), unix.MADV_NOHUGEPAGE)
}

func mapAt(at, length uintptr, flags int) uintptr {
	addr, _, errno := unix.Syscall6(unix.SYS_MMAP, at, length, unix.PROT_READ|unix.PROT_WRITE,
		uintptr(unix.MAP_PRIVATE|unix.MAP_ANON|flags), ^uintptr(0), 0)
	if errno != 0 {
		panic(errno)
	}
	return addr
}

func (a arena) at(n int) uintptr { return uintptr(a) + uintptr(n)*proc.PageSize }

func (a arena) page(n int) *byte {
	at := a.at(n)
	return (*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&at)))
}

func (a arena) write(n int) { *a.page(n)++ }

// read touches a page; one that is not there becomes the page of zeros.
func (a arena) read(n int) byte { return *a.page(n) }

func (a arena) drop(n int) {
	_ = unix.Madvise(unsafe.Slice(a.page(n), proc.PageSize), unix.MADV_DONTNEED)
}

// protect makes a page read-only and writable again.
func (a arena) protect(n int) {
	page := unsafe.Slice(a.page(n), proc.PageSize)
	if err := unix.Mprotect(page, unix.PROT_READ); err != nil {
		panic(err)
	}
	if err := unix.Mprotect(page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		panic(err)
	}
}

// move moves n pages over others, and maps new memory where they were.
func (a arena) move(from, to, n int) {
	length := uintptr(n) * proc.PageSize
	_, _, errno := unix.Syscall6(unix.SYS_MREMAP, a.at(from), length, length,
		unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, a.at(to), 0)
	if errno != 0 {
		panic(errno)
	}
	mapAt(a.at(from), length, unix.MAP_FIXED)
	a.unhuge()
}

// memory maps some pages and does with them what it is told.
func memory(say func(string, ...any), hear func() (string, bool)) {
	a := newArena()
	say("%d", a)
	var child *exec.Cmd
	for {
		order, ok := hear()
		if !ok {
			break
		}
		var n, to int
		verb, _, _ := strings.Cut(order, " ")
		fmt.Sscanf(order, verb+" %d %d", &n, &to)
		switch verb {
		case "write":
			a.write(n)
		case "fill":
			for page := range n {
				a.write(page)
			}
		case "read":
			a.read(n)
		case "drop":
			a.drop(n)
		case "protect":
			a.protect(n)
		case "movetable":
			a.move(n*pagesInTable, to*pagesInTable, pagesInTable)
		case "movepage":
			a.move(n, to, 1)
		case "remappage":
			mapAt(a.at(n), proc.PageSize, unix.MAP_FIXED)
		case "remap":
			mapAt(a.at(0), pages*proc.PageSize, unix.MAP_FIXED)
			a.unhuge()
		case "spawn":
			child = exec.Command("/proc/self/exe")
			child.Env = []string{"STASIS_TEST_SUBJECT=memory"}
			if _, err := child.StdinPipe(); err != nil { // until it is closed, the child lives
				panic(err)
			}
			if err := child.Start(); err != nil {
				panic(err)
			}
			say("%d", child.Process.Pid)
			continue
		case "exec":
			panic(syscall.Exec("/proc/self/exe", []string{"again"}, []string{"STASIS_TEST_SUBJECT=memory"}))
		}
		say("done")
	}
	if child != nil {
		child.Process.Kill()
		child.Wait()
	}
}

// busy writes, drops, moves and protects pages with several threads, without a
// pause, until it is told to stop. A page's content is new with each write.
func busy(protect bool) subject.Role {
	return func(say func(string, ...any), hear func() (string, bool)) { beBusy(protect, say, hear) }
}

func beBusy(protect bool, say func(string, ...any), hear func() (string, bool)) {
	const threads = 3
	a := newArena()
	var version atomic.Uint64
	var stop atomic.Bool
	var all sync.WaitGroup
	var moving sync.RWMutex // moving unmaps for a moment
	for thread := range threads {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(thread), 7))
			for !stop.Load() {
				// Not everywhere at once: most pages rest between two rounds, and
				// every page has its turn.
				n := (int(version.Load()/2000)*64 + random.IntN(256)) % pages
				moving.RLock()
				switch random.IntN(50) {
				case 0:
					a.drop(n)
				case 1:
					a.drop(n)
					a.read(n)
				case 2:
					a.read(n)
				default:
					at := random.IntN(proc.PageSize/8) * 8
					word := unsafe.Slice(a.page(n), proc.PageSize)[at:]
					atomic.StoreUint64((*uint64)(unsafe.Pointer(&word[0])), version.Add(1))
				}
				moving.RUnlock()
				if random.IntN(5000) == 0 {
					moving.Lock()
					if !protect || random.IntN(2) == 0 {
						// A table over another: pages that nobody writes look clean there.
						from := random.IntN(tables)
						a.move(from*pagesInTable, (from+1+random.IntN(tables-1))%tables*pagesInTable, pagesInTable)
					} else {
						a.protect(n)
					}
					moving.Unlock()
				}
			}
		})
	}
	say("%d", a)
	for order, ok := hear(); ok; order, ok = hear() {
		if order == "stop" {
			stop.Store(true)
			all.Wait()
		}
		var n int
		if k, _ := fmt.Sscanf(order, "write %d", &n); k == 1 {
			a.write(n)
		}
		say("done")
	}
}
